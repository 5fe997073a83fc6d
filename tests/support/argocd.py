"""The scripts of deploy/argocd, run as Argo CD runs them: no library but base, table and a safe `os`.

LuaJIT stands for Argo CD's gopher-lua: both are Lua 5.1 with `goto`. The real Argo CD runs the same files in
`make gitops`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa  # type: ignore[import-untyped]  # its stubs know only the base module
import yaml

Document = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy" / "argocd"
KIND = DEPLOY / "resource_customizations" / "finetune.dev" / "TrainingRun"
TESTDATA = KIND / "testdata"

WITHHELD = ("string", "math", "io", "debug", "coroutine", "jit", "bit", "dofile", "loadfile", "ffi")
SAFE_OS = """
local date, time = os.date, os.time
os = nil
package.loaded.os = nil
package.preload.os = function() return { date = date, time = time } end
"""


def stored_run(name: str) -> Document:
    """One stored TrainingRun; `name` without its suffix."""
    found: Document = yaml.safe_load((TESTDATA / f"{name}.yaml").read_text())
    return found


def run_script(path: str, obj: Document, *, libraries: bool = False) -> Any:
    """What a script of the kind's folder returns for an object: dicts and lists.

    Parameters
    ----------
    libraries: with all of Lua's, as Argo CD runs the scripts that it ships itself.
    """
    lua = lupa.LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    if not libraries:
        lua.execute("; ".join(f"{name} = nil" for name in WITHHELD))
        lua.execute(SAFE_OS)
    lua.globals()["obj"] = _to_lua(lua, obj)
    return _from_lua(lua.execute((KIND / path).read_text()))


def health(obj: Document, *, libraries: bool = False) -> Document:
    """Argo CD's health of a run: its status and message."""
    found: Document = run_script("health.lua", obj, libraries=libraries)
    return found


def enabled_actions(obj: Document) -> set[str]:
    """The actions that a person may take."""
    found = run_script("actions/discovery.lua", obj)
    return {name for name, action in found.items() if not action.get("disabled")}


def _to_lua(lua: lupa.LuaRuntime, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({key: _to_lua(lua, each) for key, each in value.items()})
    if isinstance(value, list):
        return lua.table_from([_to_lua(lua, each) for each in value])
    return value


def _from_lua(value: Any) -> Any:
    if lupa.lua_type(value) != "table":
        return value
    keys = list(value.keys())
    if keys and all(isinstance(key, int) for key in keys):
        return [_from_lua(value[key]) for key in sorted(keys)]
    return {key: _from_lua(value[key]) for key in keys}
