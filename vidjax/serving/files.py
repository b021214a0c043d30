"""The files in a video's folder."""

VIDEO, THUMBNAIL, SHEET, PREVIEW = "video.mp4", "thumbnail.webp", "spritesheet.jpg", "preview.webp"
TYPES = {VIDEO: "video/mp4", THUMBNAIL: "image/webp", SHEET: "image/jpeg", PREVIEW: "image/webp"}
VARIANTS = {"video": VIDEO, "thumbnail": THUMBNAIL, "spritesheet": SHEET, "preview": PREVIEW}
INPUT = "input.npy"  # the frames that a video starts from
MASK = "mask.npy"  # where an edit may go
RUN = "run"  # of vidjax.main, that tunes a model
