"""What clients see of models and videos, in the shape that serving systems agreed on."""

from typing import Any

from vidjax.serving.jobs import DONE, RUNNING, Job
from vidjax.serving.requests import Card


def view_job(job: Job, position: int | None) -> dict[str, Any]:
    """Describes a video; `position` is the number of videos before one that waits."""
    how = job.settings
    share = 100 if job.status == DONE else min(99, 100 * job.step // how["total"])
    return {
        "id": job.id,
        "object": job.kind,
        "status": job.status,
        "progress": share,
        "step": job.step,
        "steps": how["total"],
        "queue_position": position,
        "model": how["model"],
        "prompt": how["prompt"],
        "negative_prompt": how["negative_prompt"],
        "label": how["label"],
        "seconds": f"{how['frames'] / how['fps']:g}",
        "frames": how["frames"],
        "fps": how["fps"],
        "size": f"{how['width']}x{how['height']}",
        "seed": how["seed"],
        "guidance": how["guidance"],
        "sampler": how["sampler"],
        "strength": how["strength"],
        "input_reference": how["reference"] or None,
        "preview": job.preview if job.status == RUNNING and job.preview else None,
        "remixed_from_video_id": job.remixed_from,
        "created_at": int(job.created),
        "completed_at": None if job.completed is None else int(job.completed),
        "expires_at": None if job.expires is None else int(job.expires),
        "error": None if job.code is None else {"code": job.code, "message": job.message},
    }


def view_card(card: Card) -> dict[str, Any]:
    """Describes a model."""
    frames, height, width = card.size
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "vidjax",
        "frames": frames,
        "fps": card.fps,
        "size": f"{width}x{height}",
        "multiples": dict(zip(("frames", "height", "width"), card.strides)),
        "conditions": list(card.conditions),
        "classes": card.classes,
        "steps": card.num_steps,
        "guidance": card.guidance_scale,
        "sampler": card.sampler,
        "input_reference": card.moves,
        "tunes": card.tunes or None,
    }
