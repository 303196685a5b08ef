import sys
sys.path.insert(0,'/work/main/tests/contract')
import os, re, subprocess
from pathlib import Path
import pytest
from test_schema import configuration, api  # noqa
from api_things import make_things
def test_mine(api, tmp_path):
    things = [make_things(api, api.world.user, api.me) for _ in range(2)]
    (tmp_path / "schemathesis.toml").write_text(configuration(things, 120).replace("[phases.stateful]\nenabled = true","[phases.stateful]\nenabled = false"))
    done = subprocess.run([Path(sys.executable).with_name("schemathesis"),"run",f"{api.address}/api/v1/openapi.json","--no-color","-H",f"Authorization: {api.me.headers['authorization']}",
      "--include-path-regex","annotations|/state|/undo|/items/\\{item_id\\}$|/items$"],cwd=tmp_path,capture_output=True,text=True,check=False,env=os.environ|{"NO_PROXY":"*","COLUMNS":"160"})
    print(done.stdout[-20000:],done.stderr[-3000:])
    assert done.returncode==0
