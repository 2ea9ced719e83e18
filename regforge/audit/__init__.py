"""Grades a regularization set, ours or anybody's: what is in it, what is wrong, what to do.

grading     puts the checks together        captions, slots, words   what captions say
gathering   goes once through the dataset   copies, sizes, files     what the images are like
findings    checks and grades               provenance, leakage      what is known, what leaks
terminal    the table that is printed       training                 what follows for training
"""

from regforge.audit.grading import Audit, Check, audit_dataset
from regforge.audit.stored import StoredRows

__all__ = ["Audit", "Check", "StoredRows", "audit_dataset"]
