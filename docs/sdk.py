# ruff: noqa: INP001  a program, not part of a package
"""The methods of the `seeme` SDK 0.43.2: the routes behind each, or why it has none here.

`docs/generate.py` writes the table; a test compares the names with those of the SDK itself and the
routes with those of the application, and calls every method that has a route.
"""

_D = "/datasets/{dataset_id}"
_V = f"{_D}/versions/{{version_id}}"
_S = f"{_V}/splits/{{split_id}}"
_I = f"{_V}/items/{{item_id}}"
_L = f"{_V}/labels/{{label_id}}"
_A = f"{_V}/annotations"
_P = f"{_D}/post-processors"
_M = "/models/{model_id}"
_MV = f"{_M}/versions/{{version_id}}"

METHODS: dict[str, tuple[str, ...]] = {
    # accounts
    "register": ("POST /register",),
    "login": ("POST /login", "GET /applications"),
    "logout": ("POST /logout",),
    "create_api_key": ("POST /me/apikeys",),
    "get_api_keys": ("GET /me/apikeys",),
    "delete_api_key": ("DELETE /me/apikeys/{key_id}",),
    "get_current_user_context": ("GET /me/context",),
    "delete_user": ("DELETE /users/{user_id}",),
    "get_applications": ("GET /applications",),
    "update_applications": ("GET /applications",),
    "get_application_id": ("GET /applications",),
    # datasets
    "get_datasets": ("GET /datasets",),
    "create_dataset": ("POST /datasets",),
    "get_dataset": (f"GET {_D}",),
    "update_dataset": (f"PUT {_D}",),
    "delete_dataset": (f"DELETE {_D}",),
    "share_dataset": (f"POST {_D}/share",),
    "upload_dataset_logo": (f"POST {_D}/upload",),
    "get_dataset_logo": (f"GET {_D}/logo",),
    # versions
    "get_dataset_versions": (f"GET {_D}/versions",),
    "create_dataset_version": (f"POST {_D}/versions",),
    "get_dataset_version": (f"GET {_V}",),
    "update_dataset_version": (f"PUT {_V}",),
    "delete_dataset_version": (f"DELETE {_V}",),
    "duplicate_dataset_version": (f"POST {_V}/new",),
    "add_columns_structured_dataset_version": (f"PUT {_V}",),
    # splits and labels
    "get_dataset_splits": (f"GET {_V}/splits",),
    "create_dataset_split": (f"POST {_V}/splits",),
    "get_dataset_split": (f"GET {_S}",),
    "update_dataset_split": (f"PUT {_S}",),
    "delete_dataset_split": (f"DELETE {_S}",),
    "get_dataset_labels": (f"GET {_V}/labels",),
    "create_dataset_label": (f"POST {_V}/labels",),
    "get_dataset_label": (f"GET {_L}",),
    "update_dataset_label": (f"PUT {_L}",),
    "delete_dataset_label": (f"DELETE {_L}",),
    "get_label_stats": (f"GET {_V}/labels/splits/{{split_id}}",),
    "get_stats_for_label": (f"GET {_V}/labels/splits/{{split_id}}",),
    "get_stats_for_unlabelled": (f"GET {_V}/labels/splits/{{split_id}}",),
    # items
    "get_dataset_items": (f"GET {_V}/items",),
    "create_dataset_item": (f"POST {_V}/items",),
    "get_dataset_item": (f"GET {_I}",),
    "update_dataset_item": (f"PUT {_I}",),
    "delete_dataset_item": (f"DELETE {_S}/items/{{item_id}}",),
    "get_dataset_item_state": (f"GET {_I}/state",),
    "update_dataset_item_state": (f"PUT {_I}/state",),
    "get_dataset_item_states": (f"GET {_V}/states",),
    "upload_dataset_item_file": (f"POST {_I}/upload",),
    "upload_dataset_item_image": (f"POST {_I}/upload",),
    "download_dataset_item_image": (f"GET {_I}/download",),
    "create_structured_dataset_item": (f"POST {_V}/items",),
    "get_structured_dataset_item": (f"GET {_I}", f"GET {_V}"),
    # annotations
    "annotate": (f"POST {_A}",),
    "update_annotation": (f"PUT {_A}/{{annotation_id}}",),
    "delete_annotation": (f"DELETE {_A}/{{annotation_id}}",),
    # post-processors
    "get_post_processors": (f"GET {_P}",),
    "create_post_processor": (f"POST {_P}",),
    "get_post_processor": (f"GET {_P}/{{post_processor_id}}",),
    "update_post_processor": (f"PUT {_P}/{{post_processor_id}}",),
    "delete_post_processor": (f"DELETE {_P}/{{post_processor_id}}",),
    "get_post_processor_jobs": (f"GET {_P}/jobs",),
    # archives
    "download_dataset": (f"GET {_V}/download", f"GET {_V}/download/{{split_id}}"),
    "upload_dataset_version": (f"POST {_V}/upload", f"POST {_V}/upload/{{format}}"),
    "upload_df": ("POST /datasets", f"POST {_D}/versions", f"POST {_V}/upload/{{format}}"),
    "download_df": (f"GET {_V}/download",),
    # models and inferences
    "get_models": ("GET /models",),
    "create_model": ("POST /models",),
    "get_model": (f"GET {_M}",),
    "update_model": (f"PUT {_M}",),
    "delete_model": (f"DELETE {_M}",),
    "set_active_model_version": (f"GET {_M}", f"PUT {_M}"),
    "get_model_versions": (f"GET {_M}/versions",),
    "create_model_version": (f"POST {_M}/versions",),
    "get_model_version": (f"GET {_MV}",),
    "update_model_version": (f"PUT {_MV}",),
    "delete_model_version": (f"DELETE {_MV}",),
    "inference": ("POST /inferences/{model_id}",),
    "predict": ("POST /inferences/{model_id}",),
    "version_inference": ("POST /inferences/{model_id}/versions/{version_id}",),
    "version_predict": ("POST /inferences/{model_id}/versions/{version_id}",),
    "add_inference": ("POST /inferences/{model_id}/add",),
    "add_inference_file": ("POST /inferences/{inference_id}/upload",),
    "download_inference_file": ("GET /inferences/{inference_id}/download",),
    "update_inference": ("PUT /inferences/{inference_id}",),
    "get_inferences": (f"GET {_M}/inferences",),
    "get_inference_stats": (f"GET {_M}/stats",),
    "add_inferences": (f"POST {_S}/add_inferences",),
}
"""Each method that speaks to us, and the routes that it asks."""

LOCAL: tuple[str, ...] = (
    "admin_endpoint", "api_delete", "api_download", "api_get", "api_post", "api_put", "api_upload",
    "crud_endpoint", "find_item_in_array", "find_job_item", "find_label_with_name",
    "find_split_with_name", "find_value_for_item_key", "find_value_for_item_name", "get_apikey",
    "is_logged_in", "openai_base_url", "random_color", "read_df", "requires_login",
    "update_auth_header", "upload",
)  # fmt: skip
"""Methods that have no route of their own: they work on the client's side, or ask any address."""

_WORKFLOWS = "workflows are not in the reference"
_GRAPHS = "graphs are not in the reference"
_PLANS = "plans, subscriptions and usage belong to the platform's shop, not to the reference"
_PEOPLE = "organisations, teams, projects and roles are not in the reference"
_TRAINING = "training jobs of the platform are not in the reference"
_SHARES = "of sharing the reference knows datasets only"
_MODEL_FILES = "files and logos of models are not in the reference"

EXCUSES: dict[str, str] = {
    name: reason
    for reason, names in {
        _WORKFLOWS: (
            "cancel_workflow_execution create_workflow create_workflow_edge create_workflow_node "
            "create_workflow_version delete_workflow delete_workflow_edge "
            "delete_workflow_execution delete_workflow_logo delete_workflow_node "
            "delete_workflow_version download_workflow_execution_input_file "
            "execute_workflow_async execute_workflow_async_with_file "
            "execute_workflow_version_async execute_workflow_version_async_with_file "
            "get_workflow get_workflow_edge get_workflow_edges get_workflow_execution "
            "get_workflow_executions get_workflow_logo get_workflow_node get_workflow_nodes "
            "get_workflow_version get_workflow_versions get_workflows rerun_workflow_execution "
            "run_workflow update_workflow update_workflow_edge update_workflow_node "
            "update_workflow_version upload_workflow_logo validate_workflow"
        ),
        _GRAPHS: (
            "create_graph create_graph_edge create_graph_edges create_graph_node "
            "create_graph_nodes create_graph_version delete_graph delete_graph_edge "
            "delete_graph_node delete_graph_version duplicate_graph_version execute_graph_query "
            "export_graph_data get_graph get_graph_node get_graph_stats get_graph_version "
            "get_graph_versions get_graphs import_graph_data query_graph_nodes "
            "set_active_graph_version update_graph update_graph_node update_graph_version"
        ),
        _PLANS: (
            "create_plan create_plan_feature create_plan_pricing create_plan_version "
            "create_subscription create_subscription_override create_usage_record delete_plan "
            "delete_plan_feature delete_plan_pricing delete_plan_version delete_subscription "
            "delete_subscription_override export_plans export_plans_to_file "
            "get_org_usage_records get_plan get_plans get_subscription get_subscriptions "
            "get_usage_record get_usage_records get_usage_stats get_usage_stats_by_org "
            "get_usage_stats_by_project get_usage_stats_by_user import_plans "
            "import_plans_from_file update_plan update_plan_feature update_plan_pricing "
            "update_plan_version update_subscription update_subscription_override "
            "update_usage_record"
        ),
        _PEOPLE: (
            "add_project_member add_team_member assign_resource_to_project create_organization "
            "create_project create_role create_team delete_organization "
            "delete_organization_logo delete_project delete_project_logo delete_role "
            "delete_team delete_team_logo get_organization get_organization_logo "
            "get_organization_members get_organization_projects get_organization_roles "
            "get_organization_teams get_organizations get_permissions get_project "
            "get_project_logo get_project_members get_project_resources get_projects get_role "
            "get_roles get_team get_team_logo get_team_members get_team_projects get_teams "
            "invite_to_organization remove_organization_member remove_project_member "
            "remove_resource_from_project remove_team_member update_organization "
            "update_organization_member_role update_project update_project_member_role "
            "update_role update_team update_team_member_role upload_organization_logo "
            "upload_project_logo upload_team_logo"
        ),
        _TRAINING: "create_job delete_job get_job get_jobs update_job",
        _SHARES: (
            "delete_model_share get_model_shares get_share_role_id get_share_roles share_model"
        ),
        _MODEL_FILES: (
            "download_active_model download_model_version get_logo get_model_logo upload_logo "
            "upload_model upload_model_version upload_model_version_logo"
        ),
        "the reference names the route as not needed; it also needs the package openai": (
            "openai_client"
        ),
    }.items()
    for name in names.split()
}
"""Each method that does not speak to us, and why."""

CLIENT_BUGS: dict[str, str] = {
    "download_dataset_item_file": (
        "is documented and does not exist on the client: it stands behind a return; "
        "`download_dataset_item_image` downloads any file"
    ),
    "download_dataset": (
        "after one call with a format, later calls without one still send an empty or the old "
        "format: its default for `params` is shared"
    ),
    "get_post_processor_jobs": (
        "drops the status, attempts, error and result of a job; here `name` is the "
        "post-processor's and `description` the status, and `client.api_get` shows everything"
    ),
    "upload_dataset_item_file": (
        "knows jpg, jpeg, png, pdf, doc and docx only; texts, sounds and other files come by "
        "archive, by the bulk route or by raw HTTP"
    ),
    "create_api_key": "cannot pass scopes; the route takes them",
    "delete_user": "works only after login(), since a key alone does not tell it who it is",
}
"""Bugs of the client that the reference names, and what helps."""


def methods_table() -> str:
    """Every method of the client with its routes, those without one with the reason."""
    lines = ["| method | routes |", "| --- | --- |"]
    for name, routes in METHODS.items():
        lines.append(f"| `{name}` | {', '.join(f'`{route}`' for route in routes)} |")
    return "\n".join(lines)


def excuses_table() -> str:
    """The methods that have no route here, by their reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in EXCUSES.items():
        by_reason.setdefault(reason, []).append(name)
    lines = ["| why | methods |", "| --- | --- |"]
    lines += [
        f"| {reason} | {', '.join(f'`{name}`' for name in sorted(names))} |"
        for reason, names in by_reason.items()
    ]
    lines.append(
        "| they work on the client's side or ask any address | "
        + ", ".join(f"`{name}`" for name in sorted(LOCAL))
        + " |"
    )
    return "\n".join(lines)


def bugs_table() -> str:
    """What is wrong on the client's side, and what helps."""
    lines = ["| method | what to know |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in CLIENT_BUGS.items()]
    return "\n".join(lines)
