"""Assistants ask through the same door: keys, limits and answers are those of the service."""

from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


def call(port: int, tool: str, key: str = "", **arguments: Any) -> Any:
    """What a tool answers."""

    async def run() -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx2.AsyncClient(headers=headers) as http:
            transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
            async with Client(transport) as client:
                return await client.call_tool(tool, arguments)

    return anyio.run(run)


def test_assistants_get_what_others_get(saved, serving) -> None:
    with serving(saved, assistants=True, max_k=20) as ask:
        found = call(ask.port, "recommend", history=["i3", "?"], k=3, model="sasrec")
        expected = ask.recommend(["i3", "?"], k=3).json()
        for item, wanted in zip(found.structured_content["items"], expected["items"], strict=True):
            assert item == {**wanted, "score": pytest.approx(wanted["score"])}
        items = call(ask.port, "search_items", query="blue", limit=2).structured_content["result"]
        assert [item["name"] for item in items] == ["The Blue lamp, no. 2"] * 2
        models = call(ask.port, "models").structured_content["result"]
        assert [model["name"] for model in models] == list(saved)
        for arguments, message in (
            ({"history": ["i3"], "k": 21}, "k must be at most 20, got 21"),
            ({"history": ["i3"] * 1001}, "must be at most 1,000"),
            ({"history": ["i3"], "model": "x"}, "there is no such model"),
            ({"history": ["i3"], "mmr": 2.0}, "mmr must be less than or equal to 1"),
        ):
            refused = call(ask.port, "recommend", **arguments)
            assert refused.is_error
            assert message in refused.content[0].text
        metrics = ask("GET", "/metrics").body.decode()
        assert 'diffuserec_requests_total{method="POST",route="/mcp",status="200"}' in metrics


def test_assistants_need_a_key_too(saved, serving, keys) -> None:
    with serving(saved["markov"], assistants=True, keys=keys) as ask:
        assert ask("POST", "/mcp", {}).status == 401
        found = call(ask.port, "recommend", "ann-ann-ann-ann-ann", history=["i3"])
        assert not found.is_error
