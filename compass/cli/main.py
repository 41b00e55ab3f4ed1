"""The `compass` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from compass import __version__
from compass.cli import embedder, rebuild
from compass.errors import CompassError
from compass.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="compass")
def main() -> None:
    """Swap embedding models under a live collection."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of all collections.  [COMPASS_DATA]")
@click.option("--host", help="Address to listen on.  [COMPASS_HOST]")
@click.option("--port", type=int, help="Port of Compass's own door.  [COMPASS_PORT]")
@click.option("--serve-port", type=int, help="Port of Ray Serve's proxy.  [COMPASS_SERVE_PORT]")
@click.option("--gateways", type=int, help="Gateway replicas.  [COMPASS_GATEWAYS]")
@click.option("--dashboard/--no-dashboard", default=True, help="Ray's dashboard; `ray job submit` needs it.")
def serve(dashboard: bool, **options: Any) -> None:
    """Run Compass here, in the foreground, on a Ray of its own."""
    from compass.cli import service

    with _plain_errors():
        settings = _settings(options)
        with service.running(settings, click.echo, dashboard=dashboard) as running:
            click.echo(f"Compass {__version__} is ready")
            click.echo(f"  HTTP       {running.url}   (docs: {running.url}/docs)")
            click.echo(f"  Ray Serve  {running.serve_url}")
            if running.dashboard_url:
                click.echo(f"  Ray        {running.dashboard_url}   (RAY_AUTH_MODE=token ray job submit --address …)")
            click.echo(f"  data       {settings.data.resolve()}")
            if settings.api_key is None:
                click.echo("  open       no COMPASS_API_KEY is set: whoever reaches the port may read and write")
            click.echo("Ctrl-C, SIGTERM or `compass stop` ends it.")
            service.wait_for_signal()


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the service.  [COMPASS_DATA]")
def stop(**options: Any) -> None:
    """Stop the service that runs on a data folder of this machine."""
    from compass.cli import service

    with _plain_errors():
        service.stop(_settings(options).data, click.echo)


@main.command("embed-server")
@click.option("--model", default="compass-builtin", show_default=True, help="Salts the hashes.")
@click.option("--dims", type=click.IntRange(1, 16_384), default=384, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8080, show_default=True)
@click.option("--max-batch", type=click.IntRange(1, 65_536), default=32, show_default=True)
def embed_server(model: str, dims: int, host: str, port: int, max_batch: int) -> None:
    """Serve the built-in model by the text-embeddings-inference contract, for tests and demos."""
    from compass.testing.embed_server import run

    click.echo(f"{model} ({dims} dims) on http://{host}:{port}/embed")
    with _plain_errors():
        run(model, dims, host=host, port=port, max_client_batch_size=max_batch)


main.add_command(embedder.command)
main.add_command(rebuild.command)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the data here; default: a temporary folder.")
@click.option("--chunks", type=click.IntRange(5_000, 100_000), default=6_000, show_default=True)
def demo(data: Path | None, chunks: int) -> None:
    """Run the main job on real text: ingest, add a space, rebuild, judge, swap, roll back, drop."""
    from compass.cli.demo import run

    with _plain_errors():
        sys.exit(run(data, chunks))


def _settings(options: dict[str, Any]) -> Settings:
    return Settings(**{name: value for name, value in options.items() if value is not None})


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except CompassError as error:
        raise click.ClickException(error.detail) from None
    except ValidationError as error:
        problems = [f"COMPASS_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise click.ClickException("; ".join(problems)) from None


if __name__ == "__main__":
    main()
