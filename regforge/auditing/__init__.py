"""Grades a regularization set, ours or anybody's: what is in it, what is wrong, what to do.

`grading` puts the checks together and prints them; `gathering` goes once through the dataset; the
others check one thing each: `copies`, `captions`, `slots`, `leakage` of the subject, `training`.
"""

from regforge.auditing.gathering import Check
from regforge.auditing.grading import Audit, StoredRows, audit_dataset

__all__ = ["Audit", "Check", "StoredRows", "audit_dataset"]
