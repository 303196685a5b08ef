import io, zipfile, time
from pathlib import Path
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.transfer import stage, export, shelf
from ppworker.store import operations as store
from ppworker.pipeline.runs import refresh

def make(tmp_path, members):
    p=tmp_path/"a.zip"
    with zipfile.ZipFile(p,"w",zipfile.ZIP_DEFLATED) as z:
        for n,c in members.items(): z.writestr(n,c)
    return p

def run(world, id_):
    return operations.follow(world.deps, STEPS, world.user, id_)

def test_it(world, tmp_path):
    deps=world.deps
    world.processor()
    from PIL import Image
    b=io.BytesIO(); Image.new("RGB",(20,10)).save(b,"PNG")
    p=make(tmp_path,{"train/cat/a.png":b.getvalue(),"train/b.txt":"hello","new/dog/c.txt":"wörld", "new/dog/x/y.txt":"deep"})
    a=stage.take_archive(deps, world.user, world.dataset.version_id, p)
    op=run(world,a.operation_id)
    print(op.status, op.error, op.counts, op.result)
    assert op.status=="completed"
    for f in ("folders","ppworker","csv","coco","yolo","labelstudio","spacy-ner"):
        e=export.begin(deps, world.user, world.dataset.version_id, format_name=f)
        op=run(world,e.operation_id)
        print(f, op.status, op.error, op.counts, op.result)
        assert op.status=="completed"
        z=zipfile.ZipFile(export.archive(deps,op)); print(z.namelist()); assert z.testzip() is None
    print(list(shelf.root(deps).rglob("*")))
    N=5000
    p=make(tmp_path,{f"train/l{i%7}/{i}.txt":f"text {i}" for i in range(N)})
    t=time.time(); a=stage.take_archive(deps, world.user, world.dataset.version_id, p); print("stage",time.time()-t)
    t=time.time(); op=run(world,a.operation_id); print("import",time.time()-t, op.counts)
    t=time.time(); e=export.begin(deps, world.user, world.dataset.version_id, format_name="ppworker"); op=run(world,e.operation_id); print("export",time.time()-t, op.counts,op.result)
    p=make(tmp_path,{f"train/l{i%7}/{i}.bin":f"text {i}\0" for i in range(1000)})
    t=time.time(); a=stage.take_archive(deps, world.user, world.dataset.version_id, p); print("stage",time.time()-t)
    t=time.time(); op=run(world,a.operation_id); print("import files",time.time()-t, op.counts)
    world.check()
