"""The page's tab for reports: what `vidjax.report` wrote about the runs that are served."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import gradio as gr

from vidjax.serving.files import RUN
from vidjax.serving.visits import Visits

REPORT = "report.html"


class ReportTab:
    """Lays out the tab; `shown` are the places of the server's own models."""

    def __init__(self, visits: Visits, shown: Mapping[str, str]):
        self.visits, self.shown = visits, shown

    def build(self) -> gr.Dropdown:
        """Lays the tab out; returns the choice of the model."""
        choice = gr.Dropdown(list(self.shown), value=None, label="Model")
        page = gr.HTML()
        choice.change(self.show, choice, page, api_visibility="private")
        return choice

    def show(self, name: str | None, request: gr.Request) -> str:
        """Shows the report of a model in a frame of its own, in which nothing runs."""
        if not name:
            return ""
        self.visits.card(name, request)
        place = Path(self.shown[name]) if name in self.shown else self.visits.jobs.folder(name) / RUN
        file = place / REPORT
        if not file.is_file():
            return "<p>There is no report: a folder of weights has none, and a run's is written when it has ended.</p>"
        words, page = escape(name, quote=True), escape(file.read_text(errors="replace"), quote=True)
        return f'<iframe sandbox class="report" title="report of {words}" srcdoc="{page}"></iframe>'
