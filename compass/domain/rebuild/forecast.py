"""The report of a pilot: what a rebuild takes, what it costs, and what of it would fail. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compass.domain.chunk import IntVector
from compass.domain.rebuild.estimate import (
    Built,
    Probed,
    SpaceSize,
    Span,
    Terms,
    Work,
    cost,
    fleet_speed,
    refused_in_all,
    times,
    tokens_in_all,
)
from compass.domain.rebuild.report import (
    ChunkCounts,
    DiskEstimate,
    EndpointEstimate,
    EstimateReport,
    Failure,
    MemoryEstimate,
    TimeEstimate,
)
from compass.domain.rebuild.status import QuarantinedChunk

ChunkKey = tuple[int, str, int]  # id, file_id, chunk_index

SHOWN_REFUSALS = 20  # of each endpoint
MERGE_BYTES = 64 << 20  # the most that a merge of vector files writes before it deletes; four times that in memory


def forecast(
    work: Work,
    probed: Sequence[Probed],
    sampled: IntVector,
    built: Built | None,
    footprint: SpaceSize,
    terms: Terms,
    *,
    chunks: Mapping[int, ChunkKey],
    failures: Sequence[Failure] = (),
) -> EstimateReport:
    """The report of a dry run.

    Args:
        work: What is missing.
        probed: What the pilot saw, by endpoint.
        sampled: Positions of the sampled chunks in `work.lengths`.
        built: A small graph of the sampled vectors; None without any.
        footprint: Of the whole space, once it is built.
        terms: Of the order.
        chunks: The sampled chunks that were refused, by position in the sample.
        failures: What is known to fail already.
    """
    docs_per_s = fleet_speed(probed, terms.max_docs_per_s)
    counted = tokens_in_all(probed, sampled, work.lengths) if work.missing else (Span.exactly(0.0), "server")
    tokens, tokens_from = counted if counted is not None else (None, None)
    time_s = times(work, docs_per_s, built)
    price = cost(terms, tokens, time_s["total"])
    all_failures = [
        *failures,
        *_faults(probed),
        *_refusals(probed, work, sampled, chunks, terms),
        *_over(terms, price),
    ]
    graph, rows = footprint.graph_memory, footprint.rows_memory
    return EstimateReport(
        chunks=ChunkCounts(
            total=work.total,
            without_text=work.total - work.embeddable,
            embedded=work.embeddable - work.missing,
            missing=work.missing,
            sampled=len({at for p in probed for at in (*p.taken, *p.refused)}),
        ),
        endpoints=tuple(_endpoint(p) for p in probed),
        docs_per_s=_rounded(docs_per_s),
        tokens=_rounded(tokens),
        tokens_from=tokens_from,
        time_s=TimeEstimate(*(_rounded(time_s[name]) for name in ("embedding", "building", "total"))),
        disk_bytes=_disk(footprint),
        memory_bytes=MemoryEstimate(graph, rows, graph + rows),
        cost=_rounded(price),
        budget=terms.budget,
        failures=tuple(all_failures),
        rests_on=_rests_on(work, probed, built, tokens_from),
    )


def _endpoint(probed: Probed) -> EndpointEstimate:
    speed = probed.docs_per_s
    tokens_per_s = None if speed is None else speed.map(lambda docs: docs * probed.tokens_per_doc)
    return EndpointEstimate(
        url=probed.endpoint,
        docs=probed.docs,
        refused=len(probed.refused),
        docs_per_s=_rounded(speed),
        tokens_per_s=_rounded(tokens_per_s),
        tokens_from=probed.tokens_from if probed.docs else None,
        batch_size=probed.batch_size,
        error=probed.fault.detail if probed.fault else None,
    )


def _faults(probed: Sequence[Probed]) -> list[Failure]:
    """Endpoints that will not serve; the run ends by them if no other is left."""
    alone = all(p.fault is not None for p in probed)
    return [Failure(p.fault.type, p.fault.detail, alone, endpoint=p.endpoint) for p in probed if p.fault is not None]


def _refusals(
    probed: Sequence[Probed],
    work: Work,
    sampled: IntVector,
    chunks: Mapping[int, ChunkKey],
    terms: Terms,
) -> list[Failure]:
    failures = []
    for one in probed:
        if not one.refused:
            continue
        in_all = refused_in_all(one, sampled, work.lengths).map(round)
        share = len(one.refused) + len(one.taken)
        named = [QuarantinedChunk(*chunks[at], why) for at, why in sorted(one.refused.items()) if at in chunks]
        detail = (
            f"{one.endpoint} refuses {len(one.refused)} of {share} sampled chunks for themselves, and so about "
            f"{in_all.estimate:,.0f} of {work.missing:,}; the order allows max_failed {terms.max_failed}"
        )
        failures.append(
            Failure(
                "chunks-refused",
                detail,
                in_all.estimate > terms.max_failed,
                endpoint=one.endpoint,
                count=in_all.rounded(),
                chunks=tuple(named[:SHOWN_REFUSALS]),
            )
        )
    return failures


def _over(terms: Terms, price: Span | None) -> list[Failure]:
    if terms.budget is None or price is None or price.high <= terms.budget:
        return []
    sure = price.estimate > terms.budget
    detail = (
        f"it will cost about {price.estimate:.4g} ({price.low:.4g} to {price.high:.4g}), and the budget is "
        f"{terms.budget:g}: the run {'would' if sure else 'might'} end before it is through"
    )
    return [Failure("budget-spent", detail, sure)]


def _disk(footprint: SpaceSize) -> DiskEstimate:
    """A graph is saved beside the one before, and vector files are merged before they are deleted."""
    total = footprint.vector_files + footprint.graph_file
    beside = footprint.graph_file + min(footprint.vector_files, MERGE_BYTES)
    return DiskEstimate(footprint.vector_files, footprint.graph_file, total, total + beside)


def _rests_on(work: Work, probed: Sequence[Probed], built: Built | None, tokens_from: str | None) -> str:
    if not work.missing:
        return "nothing is missing"
    clauses = [f"{sum(p.docs for p in probed):,} texts embedded of {work.missing:,} that are missing"]
    seconds = max((p.answers[-1].at_s for p in probed if p.answers), default=0.0)
    clauses.append(f"in {seconds:.1f} s")
    if built is not None:
        clauses.append(f"; building: a graph of {built.last:,} rows of these vectors, scaled with its logarithm")
    if tokens_from == "characters":
        clauses.append("; tokens: guessed, four characters each, for not every server counts them")
    return " ".join(clauses).replace(" ;", ";")


def _rounded(span: Span | None) -> Span | None:
    return None if span is None else span.rounded()
