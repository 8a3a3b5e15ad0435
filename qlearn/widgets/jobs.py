"""Work that takes seconds, behind a bar, and that can be stopped; and explorers whose settings are such work."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias

from ipywidgets import IntProgress, Layout

from qlearn.arrays import quietly
from qlearn.style import DRAWING
from qlearn.widgets.controls import Button
from qlearn.widgets.engine import LateExplorer
from qlearn.widgets.page import LABELS

Tell: TypeAlias = Callable[[str, float], None]  # what is being done, and which share of it is; raises `Stopped`


class Stopped(RuntimeError):
    """Somebody has pressed Stop, or wants something else."""


@contextmanager
def at_work(lock: threading.RLock, tell: Tell) -> Iterator[None]:
    """One computes in here, the others wait, and say so."""
    while not lock.acquire(timeout=0.1):
        tell("waiting", 0.0)
    try:
        yield
    finally:
        lock.release()


class Job:
    """Work that says how far it is and that can be stopped: here, or in a thread of its own.

    Attributes:
        error: what has ended it, if it was an error.
        ended: whether there is nothing left to do.
    """

    def __init__(self, work: Callable[[Job], None], after: Callable[[Job], None]) -> None:
        self._work, self._after = work, after
        self._stopping, self.ended = threading.Event(), False
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None

    def stop(self) -> None:
        """End it at the next place where it says how far it is."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    @property
    def running(self) -> bool:
        """Whether it is at work in a thread of its own, and goes on."""
        return self._thread is not None and not self.ended and not self.stopped

    def check(self) -> None:
        """Raise `Stopped` if it is to end."""
        if self.stopped:
            raise Stopped("this was stopped before it was done.")

    def start(self) -> None:
        """Run it in a thread of its own."""
        # A daemon, so that leaving Python does not wait for it; `_stop_all` ends it in good order before.
        self._thread = threading.Thread(target=self.run, daemon=True, name="qlearn explorer")
        running.add(self)
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended; one that has not been started is run here."""
        if self._thread is None:
            self.run()
        self.join()

    def join(self) -> None:
        """Until its thread has ended, if it has one that is not this one."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def run(self) -> None:
        try:
            self._work(self)
        except Stopped:
            pass
        except Exception as error:  # shown by whoever waits for it
            self.error = error
        finally:
            self.ended = True
            try:
                self._after(self)
            finally:
                running.discard(self)  # last: who leaves Python waits for the last picture too


running: set[Job] = set()


@atexit.register
def _stop_all() -> None:
    for job in list(running):
        job.stop()
        job.wait()


class WorkingExplorer(LateExplorer):
    """An explorer whose settings are computed in the background: with a bar that says how far it is, and a Stop.

    What is known is shown at once. A subclass writes, beside what an `Explorer` needs:

        work(job, values)       →  compute what is missing there, and tell how far that is
        check_values(values)    →  raise `ValueError` where the controls' values are no setting
        presentable(values)     →  whether picture and numbers of these values can be shown already
        known(values)           →  whether nothing is missing there
        complete(result)        →  whether nothing is missing in what `compute` gave
        update(result)          →  puts the values of what is shown into `_shown_values`; `result["values"]` has them

    Attributes:
        unfinished: what is said where Stop left something out, and controls stay where they are.
    """

    unfinished: ClassVar[str] = ""
    buttons: ClassVar[Mapping[str, Button]] = {"stop": Button("Stop", "End what is being computed.")}

    def __init__(self, **options: Any) -> None:
        self._shown_values: dict[str, Any] = {}
        self._job: Job | None = None
        self._bar = IntProgress(
            max=100, style={"description_width": LABELS}, layout=Layout(visibility="hidden", width="auto")
        )
        super().__init__(**options)
        self._follow_on_release()
        self._put_under_controls(self._bar)
        self._buttons["stop"].disabled = True

    # What a subclass writes

    def work(self, job: Job, values: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def check_values(self, values: Mapping[str, Any]) -> None:
        pass

    def presentable(self, values: Mapping[str, Any]) -> bool:
        raise NotImplementedError

    def known(self, values: Mapping[str, Any]) -> bool:
        raise NotImplementedError

    def complete(self, result: Mapping[str, Any]) -> bool:
        raise NotImplementedError

    # What a learner calls

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the table, not rounded, and those that are not told there; waits until all are known."""
        self.load()
        return super().numbers

    def set(self, **controls: Any) -> None:
        """Move controls and wait for what comes of it: `explorer.set(bits=8)`.

        Raises:
            ValueError: a control that does not exist, or a value that it cannot take; then nothing moves.
            Stopped: the button was pressed meanwhile.
        """
        with DRAWING:
            self.check_values({**self.values, **self._checked(controls, self.values)})
            self._end()
            super().set(**controls)
        self.load()

    def stop(self) -> None:
        """End what is being computed. Controls go back to the setting that is shown, if theirs cannot be shown."""
        if (job := self._job) is None:
            return
        job.stop()  # before the lock is asked for: who computes may hold it
        with DRAWING:
            if self._job is not job:
                return
            self._end()
            text = self.unfinished
            if not self.presentable(self.values) and self._shown_values:
                text = "Controls are back where the picture is."
                with self._hands_off():
                    for name, value in self._shown_values.items():
                        self._inputs[name].value = value
                    self._fit_limits()
                if self.result["values"] != self._shown_values:
                    self.refresh()
            self._message.value = f'<div class="qlearn-error" role="status">Stopped. {text}</div>'

    @quietly
    def load(self) -> None:
        """Compute what is missing, if anything is: what showing, saving and `numbers` do. With a bar."""
        while not self.complete(self.result):
            with DRAWING:  # what a hand has set off meanwhile is waited for
                job = self._job or self._new_job()
            job.wait()
            if job.error:
                raise job.error
            if self._job is None:  # it is done, or it was stopped
                return

    # What happens when a control moves

    @quietly
    def _on_move(self, change: Any) -> None:
        """What is known is shown at once; the rest is found in the background, and shown as it comes."""
        with DRAWING:
            if self._busy:
                return
            self._end()
            try:
                self.check_values(self.values)
            except ValueError as error:
                self._complain(error)
                return
            if self.presentable(self.values):
                self.refresh()
            else:
                with self._hands_off():
                    self._fit_limits()
                self._message.value = ""
            if not self.known(self.values):
                self._new_job().start()

    def _new_job(self) -> Job:
        """The work that is missing where the controls stand."""
        values = self.values
        self._job = Job(lambda job: self.work(job, values), self._done)
        self._buttons["stop"].disabled = False
        return self._job

    def _tell(self, job: Job, stage: str, share: float) -> None:
        """Say how far a job is, if it is still wanted."""
        job.check()
        now = stage, int(100 * share)
        if (self._bar.description, self._bar.value) == now and self._bar.layout.visibility == "visible":
            return
        if DRAWING.acquire(blocking=False):  # who draws may be waiting for us: then we do without
            try:
                if job is self._job:
                    self._bar.description, self._bar.value = now
                    self._bar.layout.visibility = "visible"
            finally:
                DRAWING.release()

    def _arrived(self, job: Job) -> None:
        """Show what a job has found so far, if it is still wanted."""
        with DRAWING:
            if job is self._job:
                self.refresh()

    def _done(self, job: Job) -> None:
        with DRAWING:
            if job is self._job and not job.stopped:
                self._end()
                if job.error:
                    self._complain(job.error)
                else:
                    self.refresh()

    def _end(self) -> None:
        """Nothing of the job in progress is wanted any more; with the drawing lock in hand."""
        if self._job is not None:
            self._job.stop()
        self._job = None
        self._bar.layout.visibility = "hidden"
        self._buttons["stop"].disabled = True
