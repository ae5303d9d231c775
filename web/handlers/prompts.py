"""Handlers of saved prompts and presets."""

import msgspec

from ...queries import prompts
from .. import schemas
from ..endpoint import Request


async def list_prompts(request: Request) -> schemas.Prompts:
    return schemas.Prompts(await request.database.read(prompts.list_prompts, request.user_id))


async def add_prompt(request: Request, body: schemas.NewPrompt) -> prompts.Prompt:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.add_prompt, request.user_id, fields, quota)


async def change_prompt(request: Request, prompt_id: int, body: schemas.PromptChange) -> prompts.Prompt:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.set_prompt, request.user_id, prompt_id, fields, quota)


async def delete_prompt(request: Request, prompt_id: int) -> schemas.Confirmation:
    await request.database.write(prompts.delete_prompt, request.user_id, prompt_id)
    return schemas.Confirmation("Prompt deleted")


async def list_presets(request: Request) -> schemas.Presets:
    return schemas.Presets(await request.database.read(prompts.list_presets, request.user_id))


async def add_preset(request: Request, body: schemas.NewPreset) -> prompts.Preset:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.add_preset, request.user_id, fields, quota)


async def change_preset(request: Request, preset_id: int, body: schemas.PresetChange) -> prompts.Preset:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.set_preset, request.user_id, preset_id, fields, quota)


async def delete_preset(request: Request, preset_id: int) -> schemas.Confirmation:
    await request.database.write(prompts.delete_preset, request.user_id, preset_id)
    return schemas.Confirmation("Preset deleted")
