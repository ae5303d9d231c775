"""PowerPoint presentations (PPTX)."""

from collections.abc import Iterator

from .archive import Archive, Event
from .common import Block, Builder, Contents, heading, layout

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
_SKIPPED = frozenset({"Fallback", "rPr", "pPr", "endParaRPr", "tcPr"})
_PLACEHOLDERS = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})  # repeated on each slide


def read(archive: Archive) -> Contents:
    main = [path for kind, path in archive.relations("").values() if kind == "officeDocument"]
    path = next((path for path in main if path in archive.names), "ppt/presentation.xml")
    relations = archive.relations(path)
    slides = [
        relations.get(event.attributes.get("id", ""), ("", ""))[1]
        for event in archive.events(path)
        if event.kind == "start" and event.name == "sldId"
    ]
    slides = [slide for slide in slides if slide in archive.names]
    return Contents(MEDIA_TYPE, "slide", len(slides), (_slide(archive, slide) for slide in slides))


def _slide(archive: Archive, path: str) -> str:
    texts = ["".join(layout(_blocks(archive.events(path)))).strip()]
    related = archive.relations(path).values()
    for kind, other in related:
        if kind == "diagramData" and other in archive.names:
            texts.append("".join(layout(_blocks(archive.events(other)))).strip())
    for kind, other in related:
        if kind == "notesSlide" and other in archive.names:
            notes = "".join(layout(_blocks(archive.events(other)))).strip()
            texts.append(f"Notes: {notes}" if notes else "")
    return "\n\n".join(filter(None, texts))


def _blocks(events: Iterator[Event]) -> Iterator[Block]:
    builder = Builder()
    texts: list[str] = []
    skipped = 0
    is_text = is_placeholder = False
    bullet = ""
    is_title = False
    tables = 0
    for kind, name, values in events:
        if kind == "text":
            if is_text:
                texts.append(name)
        elif kind == "start":
            if skipped or name in _SKIPPED:
                skipped += 1
            elif name == "t":
                is_text = True
            elif name == "br":
                texts.append("\n")
            elif name in ("sp", "graphicFrame"):
                is_placeholder, is_title, bullet = False, False, ""
            elif name == "ph":
                is_title = values.get("type") in ("title", "ctrTitle")
                is_placeholder = values.get("type") in _PLACEHOLDERS
                bullet = "- " if values.get("type", "body") in ("body", "obj") else ""
            elif name == "tbl":
                builder.start_table()
                tables += 1
            elif name == "tc":
                builder.start_cell()
        elif skipped:
            skipped -= 1
        elif name == "t":
            is_text = False
        elif name == "p":
            text = "".join(texts).strip()
            texts.clear()
            if text and is_title:
                builder.add(heading(text, 1))
            elif text and not is_placeholder:
                mark = "" if tables else bullet
                builder.add(Block(mark + text, tight=bool(mark)))
        elif name == "tr":
            builder.end_row()
        elif name == "tbl":
            builder.end_table()
            tables -= 1
    builder.end()
    yield from builder.take()
