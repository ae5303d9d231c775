"""The benchmarks: `python -m bench` writes docs/performance.md. Linux, with a C compiler.

__main__.py   the command and the table
rows.py       the measurements, which yield the rows of the table
rig.py        processes, their CPU and memory, HTTP, the load
library.py    a database of 100,000 conversations and 1,000,000 messages
bare.py       the reference: a proxy of Starlette and httpx
stopwatch.py  Fireside with a stopwatch at its saves
browser.py    the time of an update of a streaming answer in Chromium
upstream.c    the model server, compiled when the bench starts
client.c      the load client, likewise
"""
