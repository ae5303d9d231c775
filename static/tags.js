// The elements and attributes of a rendered message. web/tags.py reads the JSON object in this file.

export const ALLOWED = {
  "html": {
    "a": ["href"], "blockquote": [], "br": [], "code": ["data-language"], "details": ["open"],
    "div": ["class", "data-label"], "em": [], "h1": [], "h2": [], "h3": [], "h4": [], "h5": [], "h6": [], "hr": [],
    "kbd": [], "li": ["class"], "mark": [], "ol": ["start"], "p": ["class", "data-label", "data-address"],
    "pre": ["class"], "s": [], "span": ["class", "data-reference"], "strong": [], "sub": [], "summary": [], "sup": [],
    "table": [], "tbody": [], "td": ["align"], "th": ["align"], "thead": [], "tr": [], "ul": []
  },
  "mathml": [
    "math", "menclose", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mphantom", "mroot", "mrow", "mspace", "msqrt",
    "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover"
  ],
  "mathmlAttributes": [
    "accent", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle", "fence", "form", "height",
    "largeop", "linebreak", "linethickness", "lspace", "mathsize", "mathvariant", "maxsize", "minsize", "movablelimits",
    "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy", "voffset", "width"
  ]
};
