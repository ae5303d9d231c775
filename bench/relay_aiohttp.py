"""The lightest relay that was found: Starlette and uvicorn with aiohttp's client, which passes the raw bytes on. Prints its port."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        app.state.session = session
        yield


async def chat(request: Request) -> Response:
    session: aiohttp.ClientSession = request.app.state.session
    response = await session.post(f"{sys.argv[1]}/v1/chat/completions", data=await request.body())

    async def body() -> AsyncIterator[bytes]:
        async with response:
            async for data in response.content.iter_any():
                yield data

    return StreamingResponse(body(), media_type="text/event-stream")


async def health(request: Request) -> Response:
    return JSONResponse({"status": "healthy"})


def main() -> None:
    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/health", health)]
    app = Starlette(routes=routes, lifespan=lifespan)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        print(listener.getsockname()[1], flush=True)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
