"""From a model and a file to a plan: the rooms in their order."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.indexing import open_catalog
from fastassign.catalog.memory import MemoryCatalog
from fastassign.errors import FastAssignError, Unsupported
from fastassign.matching.assignment import Matching
from fastassign.matching.match import Request, choose_layout, match
from fastassign.options import LoadOptions
from fastassign.planning.plan import Plan, make_plan
from fastassign.progress import Callback
from fastassign.report import Report
from fastassign.targets.discover import discover
from fastassign.targets.target import Layout


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LoadSpec:
    """What is to be loaded into, and how; the file comes later.

    Attributes
    ----------
    model : keras.Model, tf_keras.Model, mapping or sequence of variables
        The model.
    request : Request
        The arguments that Keras has too.
    session : tf.compat.v1.Session or None
        What the caller gave.
    atomic : bool
        See ``Plan``.
    repeated : bool
        Whether a plan will be carried out again and again, so that it pays to keep what an execution makes.
    options : LoadOptions
        Every other knob.
    layout : Layout or None
        How the file is read, where its name does not say.
    """

    model: Any
    request: Request
    options: LoadOptions
    session: Any = None
    atomic: bool = False
    repeated: bool = False
    layout: Layout | None = None

    def plan(self, path: str | os.PathLike[str], progress: bool | Callback | None = None) -> Plan:
        """Plan the load of a file.

        Raises
        ------
        Mismatch, Unreadable, Malformed, Truncated, Refused, Budget, Unsupported
            As ``fastassign.load_weights``, before anything changes.
        """
        begin = time.perf_counter()
        targets = discover(self.model)
        layout = self.layout or choose_layout(targets, Path(path), self.request)
        if targets.library != "tensorflow":
            targets.check_built(layout)
        prepared = time.perf_counter()
        catalog = index(path, self.options)
        indexed = time.perf_counter()
        matching = match(targets, catalog, layout, self.request, self.options)
        matched = time.perf_counter()
        made = self.plan_matching(catalog, matching, progress=progress)
        made.seconds.update(
            index=indexed - prepared,
            match=matched - indexed + prepared - begin,
            plan=time.perf_counter() - matched,
        )
        return made

    def plan_matching(
        self,
        catalog: Catalog | MemoryCatalog,
        matching: Matching,
        *,
        progress: bool | Callback | None = None,
    ) -> Plan:
        """Plan what was matched already."""
        # All import TensorFlow.
        from fastassign.assigning.execute import execute
        from fastassign.assigning.host.fused import Fusions
        from fastassign.devices.discover import find_devices
        from fastassign.targets.session import find_session

        try:
            session = find_session(self.session, matching.targets)
        except FastAssignError as error:
            if isinstance(catalog, Catalog):
                error.at(catalog.path)
            raise
        if session is not None and matching.hooks:
            raise Unsupported(
                f"{matching.hooks[0].obj} loads itself, by its own load_own_variables, which has no effect in a "
                "TensorFlow 1 graph",
                file=catalog.path,
                hint="load it eagerly, or pass the variables to fastassign.assign",
            )
        executor = partial(
            execute,
            skip_mismatch=self.request.skip_mismatch,
            session=session,
            fusions=Fusions(),
        )
        return make_plan(
            catalog,
            matching,
            self.options,
            atomic=self.atomic,
            repeated=self.repeated,
            devices=find_devices(
                {target.device for target in matching.targets} if self.options.device.route != "eager" else (),
                kernels=self.options.device.cut == "scatter"
                or any(assignment.fit == "cast" for assignment in matching.assignments.values()),
            ),
            executor=executor,
            progress=progress,
        )


def index(path: str | os.PathLike[str], options: LoadOptions) -> Catalog:
    """Open a file and list what is in it, by the options that concern that.

    Raises
    ------
    Unreadable, Malformed, Truncated, Refused
        The file can't be indexed.
    """
    return open_catalog(
        path,
        limits=options.limits,
        allow=options.allow,
        use_cache=options.index_cache,
        max_inflated_bytes=options.max_staging_bytes,
    )


def total(reports: list[Report]) -> Report:
    """Return one report of several loads that belong together."""
    if not reports:
        return Report(file=str(MemoryCatalog().path), assigned=0)
    if len(reports) == 1:
        return reports[0]
    routes: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for report in reports:
        for route, count in report.routes.items():
            routes[route] = routes.get(route, 0) + count
        for stage, spent in report.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    return replace(
        reports[0],
        file=", ".join(report.file for report in reports),
        assigned=sum(report.assigned for report in reports),
        cast=tuple(line for report in reports for line in report.cast),
        fallbacks=tuple(dict.fromkeys(line for report in reports for line in report.fallbacks)),
        nbytes=sum(report.nbytes for report in reports),
        seconds=seconds,
        routes=routes,
    )
