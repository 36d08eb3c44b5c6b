# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The page, in gradio. It asks nothing of any other host, and a header forbids the browser to."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from verl_uae.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from verl_uae.demo.session import DemoSession

#: gradio's page is one script with inline styles and evaluated code; nothing may come from or go to another host.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; connect-src 'self'; form-action 'self'"
)
CSS = """
.gradio-container {max-width: 1080px !important; margin: auto !important}
footer {display: none !important}
#source img, #drawn img {width: 100%; height: 100%; object-fit: contain}
#similarity td, #similarity th {padding: 4px 14px}
"""
TITLE = "verl_uae: caption and reconstruct"
INTRO = (
    "# Caption and reconstruct\n"
    "The captioner describes the picture; the decoder draws the description and sees nothing but the text. "
    "Edit the caption and draw again with the same seed to see what a word does."
)

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[..., Any], Callable[..., Any]], Awaitable[None]]


class NoOutsideHosts:
    """ASGI middleware that adds :data:`CONTENT_SECURITY_POLICY` to every answer."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def send_with_policy(message: Scope) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                message["headers"] = [*message.get("headers", ()), policy]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def load_gradio() -> Any:
    """gradio with its telemetry off.

    Raises:
        ConfigError: it is not installed.
    """
    # Read when gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("demo", 'gradio is missing: pip install "gradio>=6"') from error
    return gradio


def similarity_table(similarity: dict[str, float | str]) -> str:
    """Values per term as a Markdown table, "" where there are none."""
    if not similarity:
        return ""
    rows = [
        f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in similarity.items()
    ]
    return "\n".join(["| similarity | value |", "|---|---|", *rows])


def build_page(session: DemoSession) -> Any:
    """The page, a ``gradio.Blocks``; it starts with the settings of the session's pipeline."""
    gr = load_gradio()
    settings = session.pipe.inference

    def write(path: str | None, seed: float, temperature: float, progress: Any = gr.Progress()) -> str:  # noqa: B008
        if path is None:
            raise gr.Error("Upload a picture first.")
        progress(0.0, desc="caption")
        try:
            return session.caption(path, seed=int(seed), temperature=temperature)
        except DecodeError as error:
            raise gr.Error(f"The picture was refused: {error.message}") from error

    def draw(
        path: str | None,
        caption: str,
        seed: float,
        steps: float,
        guidance: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, str, str]:
        try:
            drawing = session.draw(
                caption,
                path,
                seed=int(seed),
                steps=int(steps),
                guidance=guidance,
                on_progress=lambda done, total: progress((done, total), desc="drawing", unit="steps"),
            )
        except DecodeError as error:
            raise gr.Error(f"The picture was refused: {error.message}") from error
        note = "The caption was too long for the condition and was cut." if drawing.truncated else ""
        return drawing.image, similarity_table(drawing.similarity), note

    theme = gr.themes.Base(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        page.uae_look = {"theme": theme, "css": CSS}  # taken by launch() since gradio 6
        gr.Markdown(INTRO)
        with gr.Row(equal_height=True):
            source = gr.Image(
                type="filepath",
                label="Picture",
                sources=["upload", "clipboard"],
                height=340,
                buttons=["fullscreen"],
                elem_id="source",
            )
            drawn = gr.Image(
                type="pil",
                format="png",
                label="Reconstruction",
                interactive=False,
                height=340,
                # Without the button that would upload the picture to a discussion on a hub.
                buttons=["download", "fullscreen"],
                elem_id="drawn",
            )
        caption = gr.Textbox(label="Caption (edit it as you like)", lines=3, max_lines=12, elem_id="caption")
        with gr.Row():
            seed = gr.Number(value=0, precision=0, label="Seed")
            count = _slider(gr, "Steps", settings.num_inference_steps, 1, 100, 1)
            scale = _slider(gr, "Guidance", settings.guidance_scale, 1.0, 12.0, 0.1)
            heat = _slider(gr, "Temperature", settings.temperature, 0.0, 1.5, 0.05)
        with gr.Row():
            both = gr.Button("Caption and draw", variant="primary", elem_id="both")
            only_write = gr.Button("Caption only", elem_id="write")
            only_draw = gr.Button("Draw this caption", elem_id="draw")
        note = gr.Markdown()
        table = gr.Markdown(elem_id="similarity")
        writing, drawing = [source, seed, heat], [source, caption, seed, count, scale]
        results = [drawn, table, note]
        both.click(write, writing, caption).success(draw, drawing, results)
        only_write.click(write, writing, caption)
        only_draw.click(draw, drawing, results)
    # One model, one request at a time; the others wait in line.
    return page.queue(default_concurrency_limit=1)


def _slider(gr: Any, label: str, value: float, low: float, high: float, step: float) -> Any:
    """A slider that starts at a setting of the model, wherever that lies."""
    return gr.Slider(low, max(high, value), value=value, step=step, label=label)


def launch(page: Any, *, host: str, port: int | None, block: bool = True) -> str:
    """Serve the page on this machine; returns its address.

    Args:
        page: from :func:`build_page`.
        host: interface to listen on.
        port: None takes the first free one from 7860.
        block: return only when the server ends.
    """
    from starlette.middleware import Middleware

    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(NoOutsideHosts)]},
        **page.uae_look,
    )
    if block:
        page.block_thread()
    return address
