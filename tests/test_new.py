"""`dltrain new` writes a class, its yaml and a test that passes; it overwrites nothing."""

import sys

import pytest

from dltrain.commands.new import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_trains(kind, dltrain, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    code, out, err = dltrain("new", f"{kind}=my_own")
    assert (code, err) == (0, "")
    assert out == (f"my_own.py\nconf/{kind}/my_own.yaml\ntest_my_own.py\n"
                   f"next: dltrain --config-dir conf {kind}=my_own\n      pytest test_my_own.py\n")
    assert "class MyOwn(" in (tmp_path / "my_own.py").read_text()
    texts = [file.read_text().replace("${data", "") for file in tmp_path.rglob("*") if file.is_file()]
    assert not [text for text in texts if "$" in text], "every name is filled in"
    namespace: dict[str, object] = {}
    exec((tmp_path / "test_my_own.py").read_text(), namespace)
    test = namespace["test_it_trains"]
    assert callable(test)
    test(tmp_path / "runs")
    if kind == "model":
        assert "(conf/model/my_own.yaml)" in dltrain("ls", "models", "--config-dir", "conf")[1]


@pytest.mark.parametrize(("words", "message"), [
    ([], "new takes one of model=NAME, data=NAME, task=NAME"),
    (["modle=x"], "unknown kind 'modle'; did you mean 'model'?"),
    (["model=My-Net"], "must be the name of a module"),
    (["model=../x"], "must be the name of a module")])
def test_what_it_cannot_write_is_refused(words, message, dltrain, tmp_path):
    code, _, err = dltrain("new", *words)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(dltrain, tmp_path):
    (tmp_path / "test_net.py").write_text("mine")
    code, _, err = dltrain("new", "model=net")
    assert (code, err) == (2, "dltrain: error: new model=net: test_net.py is there already; choose another name, or "
                              "delete it\n")
    assert [path.name for path in tmp_path.iterdir()] == ["test_net.py"]
