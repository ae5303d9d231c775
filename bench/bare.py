"""The reference: a proxy of the same Starlette, uvicorn and httpx, which forwards the raw bytes of the model server. Prints its port."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as client:
        app.state.client = client
        yield


async def chat(request: Request) -> Response:
    client: httpx.AsyncClient = request.app.state.client
    forwarded = client.build_request("POST", f"{sys.argv[1]}/v1/chat/completions", content=await request.body())
    response = await client.send(forwarded, stream=True)
    return StreamingResponse(
        response.aiter_raw(), media_type="text/event-stream", background=BackgroundTask(response.aclose)
    )


async def health(request: Request) -> Response:
    return JSONResponse({"status": "healthy"})


def main() -> None:
    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/health", health)]
    config = uvicorn.Config(
        Starlette(routes=routes, lifespan=lifespan), log_config=None, access_log=False, server_header=False, ws="none"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        print(listener.getsockname()[1], flush=True)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
