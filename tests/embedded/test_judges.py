"""The embedded judge: is it this subject, and does the image fit the caption?"""

from pathlib import Path

from PIL import Image

from regforge.embedded import load_alignment, load_identity

SUBJECTS = Path(__file__).parents[2] / "examples" / "subjects"


def images():
    """(subject, caption, image) of all shipped subjects."""
    return [
        (p.parent.name, p.with_suffix(".txt").read_text().strip(), Image.open(p).convert("RGB"))
        for p in sorted(SUBJECTS.glob("*/*.png"))
    ]


def test_identity_tells_subjects_apart_whatever_the_place():
    import torch

    model, processor = load_identity()
    rows = images()
    inputs = processor([image for _, _, image in rows], return_tensors="pt")
    with torch.no_grad():
        pooled = model(**inputs).pooler_output.flatten(1)
    assert pooled.shape == (len(rows), 256)
    unit = torch.nn.functional.normalize(pooled, dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-1)
    names = [name for name, _, _ in rows]
    nearest = similarity.argmax(1).tolist()
    right = sum(names[i] == names[j] for i, j in enumerate(nearest))
    assert right >= 0.95 * len(rows)


def test_alignment_finds_the_place_of_a_subject_it_has_never_seen():
    """Among the five captions of one subject: they differ in the place alone."""
    import torch

    model, processor, tokenizer = load_alignment()
    rows, right = images(), 0
    subjects = sorted({name for name, _, _ in rows})
    for subject in subjects:
        own = [(text, image) for name, text, image in rows if name == subject]
        pixels = processor([image for _, image in own], return_tensors="pt").pixel_values
        captions = [text.replace("sks ", "") for text, _ in own]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            image_embeds = model.get_image_features(pixel_values=pixels).pooler_output
            text_embeds = model.get_text_features(input_ids=ids.input_ids).pooler_output
        unit = torch.nn.functional.normalize
        found = (unit(image_embeds, dim=-1) @ unit(text_embeds, dim=-1).T).argmax(1)
        right += int((found == torch.arange(len(own))).sum())
    assert right >= 0.9 * len(rows)
