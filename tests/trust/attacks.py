"""Same-origin protection: pages of an attacker, in a Chromium that is signed in to Fireside, try to read and change its data.

The pages are served by another port of the same host, which is same-site and gets all cookies; by another name of this computer;
by another site; and by names that resolve to the address of Fireside (DNS rebinding).
"""

import hashlib
import itertools
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from ..browser import Fireside, Visit, launch
from ..live import PASSWORD, good
from ..pages import WebServer, web_server
from . import Figures, fireside_process

HOSTS = ("127.0.0.1", "localhost", "evil.example")  # of the attacker's server, on its own port
REBOUND = ("rebound.example", "127.0.0.1.nip.example", "localhost.evil.example")  # resolve to Fireside

TOOLS = """
const wait = (node, parent) => new Promise(done => {
  node.onload = () => done('loaded'); node.onerror = () => done(''); setTimeout(() => done(''), 3000);
  (parent || document.body).append(node);
});
const make = (tag, fields) => Object.assign(document.createElement(tag), fields);
const inside = frame => { try { return frame.contentDocument.documentElement.innerText } catch { return '' } };
const submit = async (action, method, type, fields) => {
  const frame = make('iframe', {name: 'target' + Math.random()});
  document.body.append(frame);
  const form = make('form', {action, method, enctype: type, target: frame.name});
  for (const [name, value] of Object.entries(fields)) form.append(make('input', {name, value}));
  document.body.append(form);
  const loaded = new Promise(done => { frame.onload = done; setTimeout(done, 3000) });
  form.submit();
  await loaded;
  return inside(frame).includes('"') ? inside(frame) : '';
};
const read = async (url, options) => { try { return await (await fetch(url, options)).text() } catch { return '' } };
const opaque = async (url, options) => (await read(url, {mode: 'no-cors', credentials: 'include', ...options}));
const framed = async (tag, url) => { const node = make(tag, tag == 'object' ? {data: url} : {src: url}); await wait(node); return inside(node) };
const used = async (tag, fields) => (await wait(make(tag, fields))) && (tag == 'img' || tag == 'script' || tag == 'link' ? 'loaded' : '');
"""
ATTACKS = {  # functions of Fireside's URL and Mallory's credentials, which return what they could read
    "form, text that is JSON": """u => submit(u + '/conversations', 'post', 'text/plain', {'{"title": "attacked", "x": "': '"}'})""",
    "form, urlencoded": "u => submit(u + '/conversations', 'post', 'application/x-www-form-urlencoded', {title: 'attacked'})",
    "form, multipart, to import": "u => submit(u + '/import', 'post', 'multipart/form-data', {title: 'attacked'})",
    "form that signs out": "u => submit(u + '/auth/logout', 'post', 'text/plain', {})",
    "form that signs in": """(u, mallory) => submit(u + '/auth/login', 'post', 'text/plain', {[mallory.slice(0, -1) + ', "x": "']: '"}'})""",
    "form, GET": "u => submit(u + '/conversations', 'get', 'text/plain', {q: ''})",
    "fetch, read": "u => read(u + '/auth/me', {credentials: 'include'})",
    "fetch, read the list": "u => read(u + '/conversations', {credentials: 'include'})",
    "fetch, opaque": "u => opaque(u + '/conversations')",
    "fetch, opaque POST": """u => opaque(u + '/conversations', {method: 'POST', body: '{"title": "attacked"}'})""",
    "fetch, opaque POST that streams": "u => opaque(u + '/conversations/1/stream', {method: 'POST'})",
    "fetch, opaque POST that signs in": "(u, mallory) => opaque(u + '/auth/login', {method: 'POST', body: mallory})",
    "fetch, JSON": """u => read(u + '/conversations', {method: 'POST', credentials: 'include',
        headers: {'Content-Type': 'application/json'}, body: '{"title": "attacked"}'})""",
    "fetch, JSON and a token": "u => read(u + '/conversations', {method: 'POST', credentials: 'include', headers: {'X-CSRF-Token': '0'.repeat(64)}, body: '{}'})",
    "fetch, DELETE": "u => read(u + '/conversations/1?purge=true', {method: 'DELETE', credentials: 'include'})",
    "fetch, PATCH": "u => read(u + '/conversations/1', {method: 'PATCH', credentials: 'include', body: '{}'})",
    "fetch, kept alive": """u => opaque(u + '/conversations', {method: 'POST', keepalive: true, body: '{"title": "attacked"}'})""",
    "XMLHttpRequest": """u => new Promise(done => { const x = new XMLHttpRequest(); x.open('GET', u + '/auth/me'); x.withCredentials = true;
        x.onload = () => done(x.responseText); x.onerror = () => done(''); x.send() })""",
    "beacon": """u => (navigator.sendBeacon(u + '/auth/logout'), navigator.sendBeacon(u + '/conversations', '{"title": "attacked"}'), '')""",
    "image": "u => used('img', {src: u + '/images/1'})",
    "script": "u => used('script', {src: u + '/auth/me'})",
    "script of the page": "u => used('script', {src: u + '/static/app.js'})",
    "stylesheet": "u => used('link', {rel: 'stylesheet', href: u + '/conversations'})",
    "prefetch": "u => used('link', {rel: 'prefetch', href: u + '/conversations'}).then(() => '')",
    "frame, the page": "u => framed('iframe', u + '/')",
    "frame, the list": "u => framed('iframe', u + '/conversations')",
    "object": "u => framed('object', u + '/conversations')",
    "embed": "u => framed('embed', u + '/conversations')",
    "audio": "u => used('audio', {src: u + '/export'})",
    "event source": """u => new Promise(done => { const s = new EventSource(u + '/generations/x/stream', {withCredentials: true});
        s.onopen = () => done('opened'); s.onerror = () => { s.close(); done('') } })""",
    "web socket": """u => new Promise(done => { const s = new WebSocket(u.replace('http', 'ws') + '/conversations');
        s.onopen = () => done('opened'); s.onerror = () => done('') })""",
    "worker": "async u => { try { new Worker(u + '/static/app.js'); return '' } catch { return '' } }",
    "module": "async u => { try { await import(u + '/static/app.js'); return 'loaded' } catch { return '' } }",
    "window": """async u => { const w = window.open(u + '/'); await new Promise(done => setTimeout(done, 500));
        try { return w.document.documentElement.innerText } catch { return '' } finally { w && w.close() } }""",
}
# To the browser, a page of a rebound name has the same origin as Fireside under that name.
REBINDINGS = {
    "reads the page": "() => fetch('/')",
    "reads the version": "() => fetch('/version')",
    "signs in": "mallory => fetch('/auth/login', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: mallory})",
    "creates the first account": """mallory => fetch('/admin/bootstrap', {method: 'POST',
        headers: {'Content-Type': 'application/json'}, body: mallory})""",
}
MALLORY = json.dumps(
    {"username": "mallory", "password": PASSWORD}
)  # a page that signs Ann in as Mallory gets what Ann writes
RESOLVE = ", ".join(f"MAP {name} 127.0.0.1" for name in ("evil.example", *REBOUND))
ARGUMENTS = (
    "--disable-features=LocalNetworkAccessChecks",  # other browsers do not have this protection
    f"--host-resolver-rules={RESOLVE}",
)


def _fingerprint(database: Path) -> str:
    """Return a hash of all rows, without when sessions were last seen."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        for table in ("users", "invites", "conversations", "messages", "generations"):
            digest.update(repr(connection.execute(f"SELECT * FROM {table}").fetchall()).encode())
        digest.update(repr(connection.execute("SELECT id, user_id FROM sessions").fetchall()).encode())
    return digest.hexdigest()


def _signed_in(page: Page, fireside: Fireside) -> bool:
    page.goto(fireside.url)
    return '"ann"' in page.evaluate("() => fetch('/auth/me').then(answer => answer.text())")


def _attack(page: Page, host: str, attack: str, fireside: Fireside, attacker: WebServer) -> str:
    page.goto(f"http://{host}:{attacker.server_port}/")
    script = f"async ([u, mallory]) => {{ {TOOLS} return await ({ATTACKS[attack]})(u, mallory) }}"
    return str(page.evaluate(script, [fireside.url, MALLORY]))


def _attack_rebound(page: Page, host: str, attack: str, fireside: Fireside) -> str:
    url = f"http://{host}:{fireside.port}/page"  # loaded from the attacker before the name resolved to Fireside
    page.route(url, lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(url)
    script = f"mallory => ({REBINDINGS[attack]})(mallory).then(async answer => [answer.status, await answer.text()])"
    status, text = page.evaluate(script, MALLORY)
    return "" if status == 403 and "HOST_NOT_ALLOWED" in text else f"{status} {text}"


def prove(size: int) -> Figures:
    figures = Figures()
    attacks = [*itertools.product(HOSTS, ATTACKS), *itertools.product(REBOUND, REBINDINGS)]
    if size < len(attacks):
        attacks = random.Random(2).sample(attacks, size)
    with (
        fireside_process() as (fireside, _),
        web_server(b"<!doctype html><body>") as attacker,
        sync_playwright() as playwright,
        closing(launch(playwright, *ARGUMENTS)) as browser,
    ):
        ann = fireside.first()
        fireside.join(ann, "mallory")
        conversation_id = good(ann.post("/conversations", json={"title": "private"}))["id"]
        good(ann.post(f"/conversations/{conversation_id}/messages", json={"content": "private"}))
        page = Visit(browser, fireside.url, ann).context.new_page()
        assert _signed_in(page, fireside)
        before = _fingerprint(fireside.data_dir / "fireside.db")
        for host, attack in attacks:
            if attack in ATTACKS:
                read = _attack(page, host, attack, fireside, attacker)
            else:
                read = _attack_rebound(page, host, attack, fireside)
            unchanged = _fingerprint(fireside.data_dir / "fireside.db") == before
            figures.expect(unchanged and not read, f"{attack}, {host}: changed {not unchanged}, read {read[:100]!r}")
        assert _signed_in(page, fireside), "an attack signed Ann out"
        codes = {entry["code"] for entry in fireside.log() if "code" in entry}
    figures.more = f"refused with {' and '.join(sorted(codes))}"
    cookies = sum("fireside_" in headers.get("Cookie", "") for _, headers in attacker.requests)
    figures.more += f"; the browser sent Fireside's cookie to the other port {cookies} times"
    return figures
