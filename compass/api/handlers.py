"""How each operation is done: its arguments as the domain says them, the use case, the answer as it is shown.

Raises, each of them: what the request's checks and the use case raise.
"""

from __future__ import annotations

from compass.api import requests, responses, schemas
from compass.api.arguments import Arguments
from compass.gateway.gateway import Gateway


async def create_collection(gateway: Gateway, call: Arguments) -> schemas.CollectionInfo:
    """Create a collection, and show it."""
    spec = requests.collection_spec(call.body_as(schemas.NewCollection))
    return responses.collection_info(await gateway.collections.create(spec, call.by()))


async def list_collections(gateway: Gateway, call: Arguments) -> list[schemas.CollectionInfo]:
    """Show all collections."""
    return [responses.collection_info(one) for one in await gateway.collections.all()]


async def collection_info(gateway: Gateway, call: Arguments) -> schemas.CollectionInfo:
    """Show a collection."""
    return responses.collection_info(await gateway.collections.info(call.collection))


async def delete_collection(gateway: Gateway, call: Arguments) -> None:
    """Delete a collection."""
    await gateway.collections.delete(call.collection)


async def ingest(gateway: Gateway, call: Arguments) -> schemas.IngestAnswer:
    """Write chunks."""
    order = requests.ingest_order(call.body_as(schemas.IngestRequest))
    return responses.ingest_answer(await gateway.ingest.write(call.collection, order))


async def chunks(gateway: Gateway, call: Arguments) -> schemas.ChunkPage:
    """Show a page of chunks."""
    query = call.query_as(schemas.PageQuery)
    return responses.chunk_page(await gateway.chunks.page(call.collection, query.after, query.limit))


async def chunk(gateway: Gateway, call: Arguments) -> schemas.Chunk:
    """Show a chunk."""
    return responses.chunk(await gateway.chunks.one(call.collection, call.chunk_id))


async def delete_chunk(gateway: Gateway, call: Arguments) -> schemas.DeleteAnswer:
    """Delete a chunk."""
    return responses.delete_answer(await gateway.ingest.delete_one(call.collection, call.chunk_id))


async def delete(gateway: Gateway, call: Arguments) -> schemas.DeleteAnswer:
    """Delete chunks by ids or by a filter."""
    ids, where = requests.deletion(call.body_as(schemas.DeleteRequest))
    return responses.delete_answer(await gateway.ingest.delete(call.collection, ids, where))


async def search(gateway: Gateway, call: Arguments) -> schemas.SearchResponse:
    """Search a space."""
    request = requests.search_request(call.body_as(schemas.SearchRequest))
    return responses.search_response(await gateway.search.run(call.collection, request))


async def add_space(gateway: Gateway, call: Arguments) -> schemas.SpaceAdded:
    """Add a space."""
    body = call.body_as(schemas.NewSpace)
    space = requests.new_space(body)
    await gateway.spaces.add(call.collection, space, call.by(body.reason))
    return responses.space_added(space)


async def list_spaces(gateway: Gateway, call: Arguments) -> list[schemas.SpaceInfo]:
    """Show the spaces of a collection."""
    return [responses.space_info(one) for one in await gateway.spaces.all(call.collection)]


async def set_space(gateway: Gateway, call: Arguments) -> schemas.SpaceInfo:
    """Change a space, and show it."""
    body = call.body_as(schemas.SpacePatch)
    changes = requests.space_changes(body)
    return responses.space_info(
        await gateway.spaces.change(call.collection, call.space, changes, call.by(body.reason))
    )


async def drop_space(gateway: Gateway, call: Arguments) -> None:
    """Drop a space."""
    query = call.query_as(schemas.DropQuery)
    await gateway.spaces.drop(call.collection, call.space, query.confirm, call.by(query.reason))


async def swap(gateway: Gateway, call: Arguments) -> schemas.Swapped:
    """Swap the default."""
    body = call.body_as(schemas.SwapRequest)
    order = requests.swap_order(body)
    return responses.swapped(await gateway.spaces.swap(call.collection, order, call.by(body.reason)))


async def history(gateway: Gateway, call: Arguments) -> schemas.History:
    """Show what was done to the spaces."""
    return responses.history(await gateway.spaces.history(call.collection))


async def rebuild(gateway: Gateway, call: Arguments) -> schemas.RebuildStarted | schemas.RebuildEstimate:
    """Start a rebuild, or estimate it."""
    body = call.body_as(schemas.RebuildRequest)
    order = requests.rebuild_order(body)
    if body.dry_run:
        return responses.estimate(await gateway.rebuilds.estimate(call.collection, call.space, order))
    by = call.by(body.reason)
    return responses.rebuild_started(await gateway.rebuilds.start(call.collection, call.space, order, by))


async def cancel_rebuild(gateway: Gateway, call: Arguments) -> schemas.RebuildCancelled:
    """Cancel a rebuild."""
    by = call.by(call.query_as(schemas.CancelQuery).reason)
    await gateway.rebuilds.cancel(call.collection, call.space, by)
    return schemas.RebuildCancelled()


async def rebuild_status(gateway: Gateway, call: Arguments) -> schemas.RebuildStatus:
    """Show how far a space is."""
    return responses.rebuild_status(await gateway.rebuilds.status(call.collection, call.space))


async def quarantine(gateway: Gateway, call: Arguments) -> schemas.Quarantine:
    """Show a page of the chunks that are refused."""
    query = call.query_as(schemas.PageQuery)
    page = await gateway.rebuilds.quarantine(call.collection, call.space, query.after, query.limit)
    return responses.quarantine(page)
