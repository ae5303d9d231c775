"""Handlers of what a user saves for later: prompts, presets and folders."""

import msgspec

from ...queries import folders, prompts
from ...queries.types import folder_name
from .. import responses, schemas
from ..endpoint import Request


async def list_prompts(request: Request) -> responses.Prompts:
    return responses.Prompts(await request.read(prompts.list_saved, prompts.Prompt))


async def add_prompt(request: Request, body: schemas.NewPrompt) -> prompts.Prompt:
    return await request.write(prompts.add_saved, prompts.Prompt, msgspec.to_builtins(body), request.max_bytes)


async def change_prompt(request: Request, prompt_id: int, body: schemas.PromptChange) -> prompts.Prompt:
    return await request.write(
        prompts.change_saved, prompts.Prompt, prompt_id, msgspec.to_builtins(body), request.max_bytes
    )


async def delete_prompt(request: Request, prompt_id: int) -> responses.Confirmation:
    await request.write(prompts.delete_saved, prompts.Prompt, prompt_id)
    return responses.Confirmation("Prompt deleted")


async def list_presets(request: Request) -> responses.Presets:
    return responses.Presets(await request.read(prompts.list_saved, prompts.Preset))


async def add_preset(request: Request, body: schemas.NewPreset) -> prompts.Preset:
    return await request.write(prompts.add_saved, prompts.Preset, msgspec.to_builtins(body), request.max_bytes)


async def change_preset(request: Request, preset_id: int, body: schemas.PresetChange) -> prompts.Preset:
    return await request.write(
        prompts.change_saved, prompts.Preset, preset_id, msgspec.to_builtins(body), request.max_bytes
    )


async def delete_preset(request: Request, preset_id: int) -> responses.Confirmation:
    await request.write(prompts.delete_saved, prompts.Preset, preset_id)
    return responses.Confirmation("Preset deleted")


async def list_folders(request: Request) -> responses.Folders:
    return responses.Folders(await request.read(folders.list_folders))


async def add_folder(request: Request, body: schemas.FolderName) -> folders.Folder:
    return await request.write(folders.create_folder, folder_name(body.name))


async def rename_folder(request: Request, folder_id: int, body: schemas.FolderName) -> folders.Folder:
    return await request.write(folders.rename_folder, folder_id, folder_name(body.name))


async def delete_folder(request: Request, folder_id: int) -> responses.FolderDeleted:
    return responses.FolderDeleted("Folder deleted", await request.write(folders.delete_folder, folder_id))
