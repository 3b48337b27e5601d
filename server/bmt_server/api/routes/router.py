"""Table of this server's own routes. `RequestMiddleware` checks keys and scopes before them."""

from __future__ import annotations

from fastapi import APIRouter

from bmt_server.api.batches import routes as batches
from bmt_server.api.files import routes as files
from bmt_server.api.jobs import artifact_routes as artifacts
from bmt_server.api.jobs import routes as jobs
from bmt_server.api.jobs import worker_routes as workers
from bmt_server.api.publishing import adapter_routes, import_route
from bmt_server.api.routes import (
    aliases,
    blobs,
    keys,
    limits,
    masks,
    me,
    models,
    probes,
    prune,
    retention,
    uploads,
    usage,
)


def build_router() -> APIRouter:
    """Routes of the registry, imports, API keys, `/v1/me`, `/v1/models`, `/livez`, `/readyz`."""
    router = APIRouter()
    router.get("/livez")(probes.livez)
    router.get("/readyz")(probes.readyz)
    router.get("/v1/me")(me.show)
    router.get("/v1/usage")(usage.show)
    router.get("/v1/limits")(limits.show)
    router.put("/v1/limits/{kind}/{name}")(limits.put)
    router.delete("/v1/limits/{kind}/{name}", status_code=204)(limits.delete)
    router.api_route("/v1/models", methods=["GET", "HEAD"])(models.list_models)
    router.get("/v1/models/{model:path}")(models.show_model)
    router.delete("/v1/models/{model:path}")(models.delete_model)
    router.get("/v1/masks")(masks.list_masks)
    router.put("/v1/masks/{name}")(uploads.put_mask)
    router.patch("/v1/masks/{name}")(uploads.patch_mask)
    router.get("/v1/masks/{name}")(masks.show_mask)
    router.delete("/v1/masks/{name}", status_code=204)(masks.delete_mask)
    router.post("/v1/masks/{name}/import")(import_route.import_from_source)
    router.post("/v1/load_lora_adapter")(adapter_routes.load_adapter)
    router.post("/v1/unload_lora_adapter")(adapter_routes.unload_adapter)
    router.get("/v1/masks/{name}/versions")(masks.list_versions)
    router.delete("/v1/masks/{name}/versions/{digest}", status_code=204)(masks.delete_version)
    router.post("/v1/masks/{name}/prune")(prune.prune)
    router.get("/v1/masks/{name}/retention")(retention.show)
    router.put("/v1/masks/{name}/retention")(retention.set_rule)
    router.delete("/v1/masks/{name}/retention", status_code=204)(retention.delete_rule)
    router.get("/v1/masks/{name}/aliases/{alias}")(aliases.show_alias)
    router.put("/v1/masks/{name}/aliases/{alias}")(aliases.put_alias)
    router.delete("/v1/masks/{name}/aliases/{alias}", status_code=204)(aliases.delete_alias)
    router.post("/v1/masks/{name}/aliases/{alias}/promote")(aliases.promote)
    router.post("/v1/masks/{name}/aliases/{alias}/rollback")(aliases.roll_back)
    router.put("/v1/masks/{name}/pin")(masks.pin)
    router.delete("/v1/masks/{name}/pin")(masks.unpin)
    router.get("/v1/keys")(keys.list_keys)
    router.post("/v1/keys", status_code=201)(keys.create_key)
    router.get("/v1/keys/{key_id}")(keys.show_key)
    router.delete("/v1/keys/{key_id}", status_code=204)(keys.revoke_key)
    router.post("/v1/keys/{key_id}/rotate", status_code=201)(keys.rotate_key)
    router.post("/v1/files")(files.upload)
    router.get("/v1/files")(files.list_files)
    router.get("/v1/files/{file_id}")(files.show)
    router.get("/v1/files/{file_id}/content")(files.content)
    router.delete("/v1/files/{file_id}")(files.delete)
    router.post("/v1/batches")(batches.create)
    router.get("/v1/batches")(batches.list_batches)
    router.get("/v1/batches/{batch_id}")(batches.show)
    router.post("/v1/batches/{batch_id}/cancel")(batches.cancel)
    router.post("/v1/fine_tuning/jobs")(jobs.create)
    router.get("/v1/fine_tuning/jobs")(jobs.list_jobs)
    router.get("/v1/fine_tuning/jobs/{job_id}")(jobs.show)
    router.post("/v1/fine_tuning/jobs/{job_id}/cancel")(jobs.cancel)
    router.post("/v1/fine_tuning/jobs/{job_id}/pause")(jobs.pause)
    router.post("/v1/fine_tuning/jobs/{job_id}/resume")(jobs.resume)
    router.get("/v1/fine_tuning/jobs/{job_id}/events")(jobs.events)
    router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")(jobs.checkpoints)
    router.post("/v1/workers/lease")(workers.lease)
    router.post("/v1/workers/jobs/{job_id}/report")(workers.report)
    router.get("/v1/workers/jobs/{job_id}/file")(workers.training_file)
    router.put("/v1/workers/jobs/{job_id}/mask")(workers.publish_mask)
    router.put("/v1/workers/jobs/{job_id}/checkpoints/{step}")(artifacts.publish_checkpoint)
    router.put("/v1/workers/jobs/{job_id}/results")(artifacts.keep_results)
    router.post("/v1/workers/jobs/{job_id}/end")(workers.end)
    router.api_route("/v1/blobs/{digest}", methods=["GET", "HEAD"])(blobs.blob)
    return router
