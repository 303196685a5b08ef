import os, re, subprocess, sys, json, collections
from pathlib import Path
import pytest
import importlib.util
spec = importlib.util.spec_from_file_location("ts", Path(__file__).with_name("test_schema.py"))
ts = importlib.util.module_from_spec(spec); spec.loader.exec_module(ts)
from api_things import make_things, served_world
def test_x(module_deps, tmp_path):
    with served_world(module_deps) as api:
        things=[make_things(api, api.world.user, api.me) for _ in range(2)]
        (tmp_path/"schemathesis.toml").write_text(ts.configuration(things, 10))
        done=subprocess.run([Path(sys.executable).with_name("schemathesis"),"run",f"{api.address}/api/v1/openapi.json","--no-color","-H",f"Authorization: {api.me.headers['authorization']}","--report","ndjson","--report-ndjson-path","/tmp/st.ndjson","--phases","fuzzing","--include-path","/api/v1/datasets/{dataset_id}/versions/{version_id}/splits/{split_id}","--include-path","/api/v1/datasets/{dataset_id}/versions/{version_id}/labels"],cwd=tmp_path,capture_output=True,text=True)
        print(done.stdout[-3000:])
