"""From a model and a file to a plan: the rooms in their order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.indexing import open_catalog
from fastassign.catalog.memory import ArraysInMemory
from fastassign.catalog.origin import Origin
from fastassign.devices.discover import find_devices
from fastassign.errors import FastAssignError, Unsupported
from fastassign.matching.assignment import Matching
from fastassign.matching.match import Request, choose_layout, match
from fastassign.options import LoadOptions
from fastassign.plan import Plan
from fastassign.planning.lanes import Devices
from fastassign.planning.schedule import make_schedule
from fastassign.progress import Callback
from fastassign.report import Report
from fastassign.runtime import Runtime, process_runtime
from fastassign.targets.discover import discover
from fastassign.targets.target import Layout


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LoadSpec:
    """A load without its file: the model, the arguments and the options.

    Attributes
    ----------
    model : keras.Model, tf_keras.Model, mapping or sequence of variables
        The model to load into.
    request : Request
        The arguments that Keras has too.
    session : tf.compat.v1.Session or None
        The session that the caller gave.
    atomic : bool
        See ``Plan``.
    repeated : bool
        Whether a plan will be executed repeatedly, so that it pays to keep the functions that an execution makes.
    options : LoadOptions
        All other options.
    layout : Layout or None
        The layout to read the file by; ``None`` to choose it by the file's name.
    progress : bool or callable, optional
        See ``Plan``.
    runtime : Runtime
        The parts of the process that the load works with.
    """

    model: Any
    request: Request
    options: LoadOptions
    session: Any = None
    atomic: bool = False
    repeated: bool = False
    layout: Layout | None = None
    progress: bool | Callback | None = None
    runtime: Runtime = field(default_factory=process_runtime)

    def plan(self, path: str | os.PathLike[str]) -> Plan:
        """Plan the load of a file.

        Raises
        ------
        Mismatch, Unreadable, Malformed, Truncated, Refused, Budget, Unsupported
            As for ``fastassign.load_weights``; nothing has changed.
        """
        return self.plan_file(path)[0]

    def plan_file(self, path: str | os.PathLike[str]) -> tuple[Plan, Catalog]:
        """Plan the load of a file, and return its catalog too; see ``plan``."""
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
        seconds = {"index": indexed - prepared, "match": matched - indexed + prepared - begin}
        return self.plan_matching(catalog, matching, seconds), catalog

    def plan_matching(self, origin: Origin, matching: Matching, seconds: Mapping[str, float]) -> Plan:
        """Plan a load from a finished matching.

        Parameters
        ----------
        origin : Origin
            The origin of the values.
        matching : Matching
            The records and the variables that they go into.
        seconds : mapping of str to float
            The duration of each earlier stage.

        Raises
        ------
        Budget, Refused, Unsupported, NoSession
            See ``plan``.
        """
        begin = time.perf_counter()
        try:
            session = self._session(matching)
            schedule = make_schedule(
                matching, self.options, atomic=self.atomic, repeated=self.repeated, devices=self._devices(matching)
            )
        except FastAssignError as error:
            raise origin.name_in(error) from error.__cause__
        return Plan(
            origin=origin,
            matching=matching,
            options=self.options,
            schedule=schedule,
            session=session,
            runtime=self.runtime,
            atomic=self.atomic,
            skip_mismatch=self.request.skip_mismatch,
            progress=self.progress,
            seconds=MappingProxyType({**seconds, "plan": time.perf_counter() - begin}),
        )

    def _session(self, matching: Matching) -> Any:
        from fastassign.targets.session import find_session  # imports TensorFlow

        session = find_session(self.session, matching.targets)
        if session is not None and matching.hooks:
            raise Unsupported(
                f"{matching.hooks[0].obj} loads itself, by its own load_own_variables, which has no effect in a "
                "TensorFlow 1 graph",
                hint="load the model eagerly, or assign the layer's variables with fastassign.assign",
            )
        return session

    def _devices(self, matching: Matching) -> Devices:
        """Find the devices that we can copy to; look for kernels only if they would be of use."""
        device = self.options.device
        wanted = {target.device for target in matching.targets} if device.route != "eager" else ()
        casts = any(assignment.fit == "cast" for assignment in matching.assignments.values())
        return find_devices(wanted, self.runtime.find_driver, kernels=casts or device.cut == "scatter")


def request_of(*, by_name: bool, skip_mismatch: bool, objects_to_skip: Iterable[Any] | None) -> Request:
    """Return the arguments that Keras has too; ``objects_to_skip`` may be read only once."""
    return Request(
        by_name=by_name,
        skip_mismatch=skip_mismatch,
        objects_to_skip=None if objects_to_skip is None else tuple(objects_to_skip),
    )


def index(path: str | os.PathLike[str], options: LoadOptions) -> Catalog:
    """Open a file and list its contents, by the options that concern files.

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
    """Return one report for several loads that belong together."""
    if not reports:
        return Report(file=str(ArraysInMemory().path), assigned=0)
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
