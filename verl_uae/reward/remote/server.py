# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae reward-server``: HTTP around a :class:`~verl_uae.reward.remote.service.ScoringService`.

Its options are in :mod:`verl_uae.cli`, since importing this package imports torch.
Requests are read in the event loop and scored in threads, so ``/health`` answers while a batch is being scored.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import functools
import hmac
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import prometheus_client
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from verl_uae.data.limits import ImageLimits
from verl_uae.devices import checked_device
from verl_uae.errors import ConfigError, UAEError
from verl_uae.reward.remote.protocol import (
    HEALTH_PATH,
    JSON_TYPE,
    METRICS_PATH,
    SCORE_PATH,
    VERSION,
    ProtocolError,
    answer_message,
    bounds_message,
    dumps,
    parse_request,
    read_token,
)
from verl_uae.reward.remote.service import MAX_REQUEST_PIXELS, ScoringService, TooLargeError, read_terms
from verl_uae.reward.scorer import check_specs
from verl_uae.web import is_loopback

logger = logging.getLogger(__name__)

#: ``Retry-After`` of a busy server and of one that loads its models, seconds.
BUSY_S, LOADING_S = 1, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Where a server listens and what it lets in."""

    host: str = "127.0.0.1"
    port: int = 8900
    token: str | None = None
    insecure: bool = False
    """Listen to other machines without a token."""
    max_samples: int = 64
    """Samples in a request."""
    max_body_bytes: int = 128 * 2**20
    max_in_flight: int = 4
    """Requests that are read or scored at a time; more are told to come back."""
    read_timeout_s: float = 30.0
    """For the body of a request to arrive."""
    shutdown_s: float = 30.0
    """For requests in flight when the server is told to end."""
    certificate: str | None = None
    """PEM file, for https."""
    certificate_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_samples", "max_body_bytes", "max_in_flight", "read_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')}", f"must be above 0, got {getattr(self, name)}")
        if not (self.token or self.insecure or is_loopback(self.host)):
            message = f"{self.host} can be reached from other machines: give a token (--token-file) or --insecure"
            raise ConfigError("--host", message)
        if (self.certificate is None) != (self.certificate_key is None):
            raise ConfigError("--tls-cert", "--tls-cert and --tls-key belong together")


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        make = functools.partial(functools.partial, namespace="verl_uae_reward", registry=self.registry)
        counter, gauge = make(prometheus_client.Counter), make(prometheus_client.Gauge)
        self.requests = counter("requests", "Scoring requests by HTTP status", ["code"])
        self.samples = counter("samples", "Samples by status", ["status"])
        self.seconds = make(prometheus_client.Histogram)(
            "request_seconds",
            "Seconds from the head of a scoring request to its answer",
            buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        )
        self.in_flight = gauge("in_flight", "Requests being read or scored")
        self.ready = gauge("ready", "1 when requests are scored")


class RewardServer:
    """The application, without the socket.

    Args:
        load: builds the service; called in a thread once the server listens.
        settings: limits and token.
        on_failed: called when the service cannot be built; the reason is then in ``error``.
    """

    def __init__(
        self, load: Callable[[], ScoringService], settings: ServerSettings, on_failed: Callable[[], None] = lambda: None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.error: BaseException | None = None
        self._load = load
        self._on_failed = on_failed
        self._service: ScoringService | None = None
        self._in_flight = 0
        # Text of a request takes up to four bytes per byte of it while it is read.
        self._reading = threading.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(settings.max_in_flight, "reward-server")
        self.app = FastAPI(lifespan=self._lifespan, openapi_url=None)
        self.app.post(SCORE_PATH, response_model=None)(self._score)
        self.app.get(HEALTH_PATH, response_model=None)(self._health)
        self.app.get(METRICS_PATH, response_model=None)(self._show_metrics)
        self.app.add_exception_handler(HTTPException, _refused)
        self.app.add_exception_handler(Exception, _failed)

    # ---------------------------------------------------------------- life

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(self._threads, self._load)
        loading.add_done_callback(self._loaded)
        try:
            yield
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, loading: asyncio.Future[ScoringService]) -> None:
        if loading.cancelled():
            return
        self.error = loading.exception()
        if self.error is not None:
            self._on_failed()
            return
        self._service = loading.result()
        self.metrics.ready.set(1)
        logger.info("ready, fingerprint %s", self._service.fingerprint)

    # ---------------------------------------------------------------- endpoints

    async def _score(self, request: Request) -> Response:
        code = 500
        with self.metrics.seconds.time():
            try:
                response = await self._answer(request)
                code = response.status_code
                return response
            except HTTPException as error:
                code = error.status_code
                raise
            finally:
                self.metrics.requests.labels(str(code)).inc()

    async def _answer(self, request: Request) -> Response:
        self._authorize(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON_TYPE:
            raise HTTPException(415, f"send {JSON_TYPE}")
        if self._service is None or self._in_flight >= self.settings.max_in_flight:
            wait_s = LOADING_S if self._service is None else BUSY_S
            reason = "loading" if self._service is None else f"{self._in_flight} requests in flight"
            raise HTTPException(503, reason, {"Retry-After": str(wait_s)})
        self._in_flight += 1
        with self.metrics.in_flight.track_inprogress():
            try:
                body = await self._body(request)
                score = functools.partial(self._scored, self._service, body)
                return await asyncio.get_running_loop().run_in_executor(self._threads, score)
            finally:
                self._in_flight -= 1

    def _scored(self, service: ScoringService, body: bytearray) -> Response:
        """Runs in a thread; empties the body, whose parts the samples hold."""
        try:
            with self._reading:
                samples = parse_request(body, self.settings.max_samples)
            body.clear()
        except ProtocolError as error:
            raise HTTPException(400, str(error)) from error
        try:
            records = service.score(samples)
        except TooLargeError as error:
            raise HTTPException(413, str(error)) from error
        except UAEError as error:
            logger.error("%s", error)
            raise HTTPException(500, str(error)) from error
        for record in records.values():
            self.metrics.samples.labels(str(record.status)).inc()
        return Response(answer_message(service.fingerprint, records), media_type=JSON_TYPE)

    async def _health(self, request: Request) -> Response:
        """Readiness for everybody; the rest for who has the token."""
        service = self._service
        status = "failed" if self.error is not None else "loading" if service is None else "ready"
        code, headers = (200, {}) if status == "ready" else (503, {"Retry-After": str(LOADING_S)})
        content: dict[str, object] = {"version": VERSION, "status": status}
        if service is not None and ("authorization" in request.headers or self.settings.token is None):
            self._authorize(request)
            content |= {
                "fingerprint": service.fingerprint,
                "bounds": bounds_message(service.scorer.bounds),
                "needs": sorted(service.needs),
                "limits": {"max_samples": self.settings.max_samples, "max_body_bytes": self.settings.max_body_bytes},
                "terms": service.terms.describe(),
                "files": service.files,
                "versions": service.versions(),
                "device": str(service.scorer.device),
            }
        return Response(dumps(content), code, headers, JSON_TYPE)

    async def _show_metrics(self, request: Request) -> Response:
        self._authorize(request)
        content = prometheus_client.generate_latest(self.metrics.registry)
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    # ---------------------------------------------------------------- limits

    def _authorize(self, request: Request) -> None:
        token = self.settings.token
        if token is not None and not authorized(request.headers.get("authorization"), token):
            raise HTTPException(401, "wrong or missing token", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytearray:
        limit = self.settings.max_body_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise HTTPException(413, f"{length} bytes, limit {limit}", {"Connection": "close"})
        try:
            return await asyncio.wait_for(_read(request, limit), self.settings.read_timeout_s)
        except asyncio.TimeoutError as error:
            reason = f"the request did not arrive within {self.settings.read_timeout_s:g} s"
            raise HTTPException(408, reason, {"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the request broke off") from error


def authorized(header: str | None, token: str) -> bool:
    """Whether an ``Authorization`` header carries the token; takes equally long wherever they differ."""
    scheme, _, given = (header or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    return same and scheme.lower() == "bearer"


async def _read(request: Request, limit: int) -> bytearray:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise HTTPException(413, f"more than {limit} bytes", {"Connection": "close"})
    return body


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(dumps({"error": error.detail}), error.status_code, dict(error.headers or {}), JSON_TYPE)


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw; uvicorn logs it with its traceback."""
    return Response(dumps({"error": f"{type(error).__name__}, see the server's log"}), 500, media_type=JSON_TYPE)


def serve(load: Callable[[], ScoringService], settings: ServerSettings, announce: Callable[[str], None]) -> None:
    """Listen until SIGINT or SIGTERM; requests in flight are answered first. ``announce`` is told the bound address.

    Raises:
        ConfigError: the address cannot be bound, or a certificate cannot be read.
        UAEError: whatever building the service raised.
    """
    config = uvicorn.Config(
        app="",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )
    server = uvicorn.Server(config)
    reward = RewardServer(load, settings, functools.partial(setattr, server, "should_exit", True))
    config.app = reward.app
    listener = _bind(settings)
    scheme = "http" if settings.certificate is None else "https"
    host, port = listener.getsockname()[:2]
    announce(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal again when it is done, for these to end the process; a clean end is 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listener])
    except OSError as error:  # ssl.SSLError too
        raise ConfigError("--tls-cert", f"cannot be used: {error}") from error
    if reward.error is not None:
        raise reward.error


def _bind(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError("--port", f"cannot listen on {settings.host}:{settings.port}: {error}") from error


def run(args: argparse.Namespace) -> int:
    """Serve until told to end.

    Raises:
        ConfigError: an option, a term or the address that does not work.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        token=read_token(args.token_file, "--token-file"),
        insecure=args.insecure,
        max_samples=args.max_samples,
        max_body_bytes=args.max_body_mib * 2**20,
        max_in_flight=args.max_in_flight,
        certificate=args.tls_cert,
        certificate_key=args.tls_key,
    )
    try:
        limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=args.max_pixels, min_side=1)
    except ValueError as error:
        raise ConfigError("--max-pixels", str(error)) from error
    request_pixels = MAX_REQUEST_PIXELS if args.max_request_pixels is None else args.max_request_pixels
    if request_pixels < args.max_pixels:
        raise ConfigError("--max-request-pixels", f"must be at least --max-pixels, got {request_pixels}")
    if args.source_cache_mib < 0:
        raise ConfigError("--source-cache-mib", f"must be at least 0, got {args.source_cache_mib}")
    terms = read_terms(args.term, args.config)
    # Before the socket: what is wrong without loading anything ends the command at once.
    check_specs(terms.summed, terms.held_out, "terms", args.timeout_s)
    load = functools.partial(
        ScoringService,
        terms,
        device=str(checked_device(args.device)),
        timeout_s=args.timeout_s,
        source_cache_bytes=args.source_cache_mib * 2**20,
        limits=limits,
        max_request_pixels=request_pixels,
    )
    serve(load, settings, functools.partial(print, flush=True))
    return 0
