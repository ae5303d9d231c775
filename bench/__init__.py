"""The benchmarks: `python -m bench` writes docs/performance.md. Linux, with a C compiler.

__main__.py   the command: which rows, how often, and the table
rows.py       what is measured, a function a row of the table
rig.py        what it is measured with: processes, their CPU and memory, the load
library.py    a database of 100,000 conversations and 1,000,000 messages
bare.py       the reference: Starlette and httpx, which pass bytes on and keep nothing
stopwatch.py  Fireside with a stopwatch at its saves
page.py       a command of its own: what a streaming answer costs the page in a browser
upstream.c    the model server, compiled when the bench starts, into a temporary folder
client.c      the load client, likewise
"""
