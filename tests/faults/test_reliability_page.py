"""The page of what holds, from a report of the tests."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/reliability"
TESTS = """
def row_04(kind): ...
def test_row_04_a_signal_saves():
    \"\"\"A signal saves;
    the run | resumes.\"\"\"
def test_row_04_control(): ...
def test_row_04_b_so_do_two(): "Two processes too."
def test_row_05_control_without_lock(): ...
def test_row_05_lock(): "One at a time."
def test_row_06_first_kind(): "The first."
def test_row_06_other_kind(): "The other."
def test_row_06_first_control(): ...
def test_row_06_other_control(): ...
def test_row_07_alone(): "No control."
"""
REPORT = """<testsuites><testsuite>
<testcase name="test_row_04_a_signal_saves[TERM]"/>
<testcase name="test_row_04_a_signal_saves[INT]"><failure/></testcase>
<testcase name="test_row_04_control"/>
<testcase name="test_row_04_b_so_do_two[1]"/><testcase name="test_row_04_b_so_do_two[2]"><skipped/></testcase>
<testcase name="test_row_05_control_without_lock"><error/></testcase><testcase name="test_row_05_lock"/>
<testcase name="test_row_06_first_kind"/><testcase name="test_row_06_other_kind"/>
<testcase name="test_row_06_first_control"/><testcase name="test_row_06_other_control"><failure/></testcase>
<testcase name="test_row_07_alone"/><testcase name="test_something_else"/>
</testsuite></testsuites>"""


def test_the_page_states_what_the_report_says(tmp_path):
    loader = SourceFileLoader("reliability", str(SCRIPT))
    script = module_from_spec(spec_from_loader("reliability", loader))  # type: ignore[arg-type]
    loader.exec_module(script)
    (tmp_path / "test_rows.py").write_text(TESTS)
    (tmp_path / "report.xml").write_text(REPORT)
    rows = script.table(script.read_report(tmp_path / "report.xml"), script.promises(tmp_path))
    assert rows == [
        ["04", "A signal saves; the run \\| resumes.", "no", "yes"], ["04b", "Two processes too.", "skipped", "yes"],
        ["05", "One at a time.", "yes", "no"], ["06", "The first.", "yes", "yes"], ["06", "The other.", "yes", "no"],
        ["07", "No control.", "yes", "no control"]]
