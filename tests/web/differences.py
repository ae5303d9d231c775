"""Where Fireside's Markdown differs on purpose from CommonMark 0.31.2 (https://spec.commonmark.org/0.31.2) and from GitHub's.

Some differences are rules, which test_commonmark.py applies to what an example expects:

- an image is a link to it, with its description as the text;
- a link without a scheme and host is its text and the address in parentheses;
- a title is left out: the page shows the address when the pointer is over a link;
- the language of code is a word in lower case, or is left out;
- the definition of a link stays a paragraph.

All other examples that differ are here, by reason. An example that no longer differs fails the test.
"""

COMMONMARK: dict[str, tuple[int, ...]] = {
    "HTML is text, except <br>, <details> and a few pairs of tags without attributes": (
        *(21, 31), *range(148, 168), *range(169, 192), *(201, 308, 309, 344, 474, 475, 476, 523, 535), *range(612, 617), 622, *range(624, 632), *(642, 643),
    ),
    "only addresses of the web and of mail are links, and they are links also without < >": (
        346, 525, 595, 596, 597, 598, 599, 600, 601, 602, 607, 610, 611,
    ),
    "[text] alone is no reference: the end of an answer could make links of brackets in its beginning": (
        23, 33, 192, 194, 202, 203, 204, 205, 206, 214, 215, 216, 217, 218, 531, 532, 539, 541, 542, 549, 555, 556, 557, 558, 559, 560, 561,
        563, 567, 568, 569, 570, 572, 586, 587, 588, 590, 592,
    ),
    "a definition is one line, its address is one of the web or of mail, and its label has no brackets or backslashes": (
        193, 195, 196, 198, 200, 208, 540, 548, 575, 576,
    ),
    "the text of a reference has no brackets": (527, 528, 530),
    "a reference takes precedence over an address in < >": (537,),
    "an address without scheme has no colon, line break or entity, and is not empty in < >": (485, 490, 493, 499, 502),
    "a description of an image that contains a link is not looked into": (519, 574),
    "a description of an image keeps its emphasis": (584,),
    "a backslash in the language of code is not an escape": (24,),
}  # fmt: skip

GITHUB: dict[str, str] = {
    "~~no~~ and ~no~, yes\n": "one tilde is text, as in ~5 to ~10",
    "a ~~~b~~~ c\n": "two of three tildes strike",
    "~~a~ b~~\n": "one tilde is text",
    "www.example.org/?a=b&copy;\n": "an entity at the end of an address belongs to the address",
    "a@b.c\n": "the last part of a host has two letters at least",
    "mailto:a@b.cd\n": "an address of mail is a link without a scheme, or in < >",
    "https://a.bc/d*e\n": "an address ends at an asterisk, which may end **https://example.org**",
    "ftp://a.bc\n": "ftp is no link",
}
