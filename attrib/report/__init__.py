"""Reports: results in, one self-contained page out; and summaries of results in sentences."""

from attrib.report.demo_report import Study, demo_page, study, write_page
from attrib.report.layer_report import write_layer_report
from attrib.report.layer_study import LayerStudy, layer_study
from attrib.report.run_reader import RunRead, read_runs

__all__ = [
    "LayerStudy",
    "RunRead",
    "Study",
    "demo_page",
    "layer_study",
    "read_runs",
    "study",
    "write_layer_report",
    "write_page",
]
