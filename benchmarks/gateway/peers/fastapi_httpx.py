"""Reference gateway, the usual way: FastAPI under uvicorn (uvloop, httptools), httpx as client, streams passed through.

Owns nothing but the path of bytes; what else it does per request is in lines.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

import lines

app = FastAPI()
client = httpx.AsyncClient(limits=httpx.Limits(max_connections=4096, max_keepalive_connections=4096), timeout=600)
JSON = {"content-type": "application/json"}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    if request.headers.get("authorization", "").encode() != lines.AUTHORIZATION:
        return Response(status_code=401)
    body = await request.body()
    stream = orjson.loads(body).get("stream")
    line = lines.choose()
    url = f"http://{line.host}:{line.port}/v1/chat/completions"
    if not stream:
        try:
            answer = await client.post(url, content=body, headers=JSON)
        finally:
            line.requests -= 1
        lines.count(answer.content)
        return Response(answer.content, answer.status_code, media_type="application/json")
    try:
        upstream = await client.send(client.build_request("POST", url, content=body, headers=JSON), stream=True)
    except BaseException:
        line.requests -= 1
        raise

    async def events() -> AsyncIterator[bytes]:
        try:
            async for data in upstream.aiter_raw():
                yield data
        finally:
            line.requests -= 1
            await upstream.aclose()

    return StreamingResponse(events(), upstream.status_code, media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=lines.PORT, loop="uvloop", http="httptools", log_level="error",
                access_log=False, backlog=4096)  # fmt: skip
