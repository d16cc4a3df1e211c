"""Reports: results in, one self-contained page out."""

from attrib.report.demo_study import Study, study
from attrib.report.page import write_page

__all__ = ["Study", "study", "write_page"]
