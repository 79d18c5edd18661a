from .cache.build import build_cache as build_cache
from .cache.dataset import CachedDistillationDataset as CachedDistillationDataset
from .cache.reader import LogitCache as LogitCache
from .cache.spec import CacheSpec as CacheSpec
from .cache.teacher_runner import Teachers as Teachers
from .cache.teacher_sources import Teacher as Teacher
from .cache.verify import verify_cache as verify_cache
from .cache.writer import CacheWriter as CacheWriter
from .data.augment import Views as Views
from .data.augment import apply_views as apply_views
from .data.augment import draw_views as draw_views
from .data.augment import warp as warp
from .data.ingest import ingest_samples as ingest_samples
from .data.sample_store import SampleStore as SampleStore
from .data.samples import Sample as Sample
from .errors import MtkdError as MtkdError
from .evaluation.frames import Prediction as Prediction
from .evaluation.predictor import Predictor as Predictor
from .losses.cross_entropy import exclusive_cross_entropy as exclusive_cross_entropy
from .losses.kl import channelwise_kl as channelwise_kl
from .models.checkpoints import load_network as load_network
from .models.network import Network as Network
from .models.network import create_network as create_network
from .recipe import load_recipe as load_recipe

__version__: str
