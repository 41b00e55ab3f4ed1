"""`compass embedder`: a model of sentence-transformers on this machine, without Ray."""

from __future__ import annotations

import click

from compass.errors import CompassError


@click.command("embedder")
@click.option("--model", required=True, help="Name on the hub, or a folder.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8080, show_default=True)
@click.option("--device", help="Such as cpu or cuda:0; default: a GPU if there is one.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto")
@click.option("--max-batch", type=click.IntRange(1, 65_536), default=32, show_default=True)
def command(model: str, host: str, port: int, device: str | None, dtype: str, max_batch: int) -> None:
    """Serve any sentence-transformers model by the text-embeddings-inference contract.

    Wants the extra `embedder`. COMPASS_EMBEDDER_API_KEY, where it is set, is wanted of whoever asks.
    """
    from starlette.applications import Starlette

    from compass.embedder import http_server
    from compass.embedder.backend import open_server
    from compass.embedder.config import EmbedderConfig, api_key

    config = EmbedderConfig.model_validate(
        {"model": model, "device": device, "dtype": dtype, "max_client_batch_size": max_batch}
    )
    click.echo(f"loading {model} …")
    try:
        server = open_server(config, api_key())
        info = server.info()

        def ready(base: str) -> None:
            click.echo(f"{model} ({info['model_dtype']}, {info['max_input_length']} tokens) on {base}/embed")

        http_server.run(Starlette(routes=server.routes()), host, port, ready)
    except CompassError as error:
        raise click.ClickException(error.detail) from None
