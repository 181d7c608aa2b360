"""Data that isn't mounted: fetched into a cache folder, from a hub, a bucket or a web server."""

from finetune_api.data import DataFormat
from finetune_api.uris import Scheme, Uri
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.sources import buckets, downloads, formats, hub, web
from finetune_trainer.sources.formats import Files


def fetch(uri: str, asked: DataFormat, *, evaluation: bool) -> Files:
    """The files, on disk. Raises NotFound, NoPermission, ConfigInvalid, SourceUnreachable or StorageFailed."""
    match Uri.parse(uri).scheme:
        case Scheme.HUB:
            folder, paths = hub.fetch(uri, evaluation=evaluation)
            return formats.of(folder, paths, asked, uri=uri)
        case Scheme.S3 | Scheme.GCS:
            return formats.find(buckets.fetch(uri, wanted=formats.is_data), asked, uri=uri)
        case Scheme.HTTPS:
            return formats.find(web.fetch(uri, downloads.folder_for(uri)), asked, uri=uri)
        case other:
            raise ConfigInvalid(f"dataset {uri}: {other}:// must be mounted, and no path is given")
