"""The public names, a home each; `__init__.py` loads them when they are first used."""

from .backbones import (
    BACKBONES as BACKBONES,
)
from .backbones import (
    Backbone as Backbone,
)
from .backbones import (
    WeightsOrigin as WeightsOrigin,
)
from .backbones import (
    backbone_names as backbone_names,
)
from .backbones import (
    load_backbone as load_backbone,
)
from .bank import (
    MemoryBank as MemoryBank,
)
from .bank import (
    Neighbors as Neighbors,
)
from .bank import (
    PatchSources as PatchSources,
)
from .bank import (
    faiss_version as faiss_version,
)
from .bank import (
    kmeans as kmeans,
)
from .bank import (
    set_threads as set_threads,
)
from .bundle import (
    ImageScore as ImageScore,
)
from .bundle import (
    Manifest as Manifest,
)
from .bundle import (
    MemorySource as MemorySource,
)
from .bundle import (
    ModelBundle as ModelBundle,
)
from .bundle import (
    current_generation as current_generation,
)
from .bundle import (
    list_models as list_models,
)
from .bundle import (
    read_manifest as read_manifest,
)
from .compress import (
    PatchSample as PatchSample,
)
from .compress import (
    ema_bank as ema_bank,
)
from .compress import (
    kmeans_bank as kmeans_bank,
)
from .compress import (
    mean_bank as mean_bank,
)
from .compress import (
    sample_patches as sample_patches,
)
from .descriptor import (
    PatchDescriptor as PatchDescriptor,
)
from .descriptor import (
    initial_descriptor as initial_descriptor,
)
from .devices import (
    resolve_device as resolve_device,
)
from .errors import (
    BankError as BankError,
)
from .errors import (
    BundleError as BundleError,
)
from .errors import (
    CfaIndexError as CfaIndexError,
)
from .errors import (
    DatasetError as DatasetError,
)
from .errors import (
    DeviceError as DeviceError,
)
from .errors import (
    ImageError as ImageError,
)
from .errors import (
    OutputError as OutputError,
)
from .errors import (
    SpecError as SpecError,
)
from .errors import (
    StoreError as StoreError,
)
from .errors import (
    WeightsError as WeightsError,
)
from .events import (
    Event as Event,
)
from .events import (
    Listener as Listener,
)
from .events import (
    Notice as Notice,
)
from .events import (
    StageAdvanced as StageAdvanced,
)
from .events import (
    StageEnded as StageEnded,
)
from .events import (
    StageStarted as StageStarted,
)
from .events import (
    ignore as ignore,
)
from .events import (
    stage as stage,
)
from .files import (
    atomic_path as atomic_path,
)
from .files import (
    write_bytes as write_bytes,
)
from .files import (
    write_json as write_json,
)
from .hypersphere import (
    HypersphereLoss as HypersphereLoss,
)
from .hypersphere import (
    LossTerms as LossTerms,
)
from .hypersphere import (
    attraction_loss as attraction_loss,
)
from .hypersphere import (
    certainty_scores as certainty_scores,
)
from .hypersphere import (
    nearest_distances as nearest_distances,
)
from .hypersphere import (
    neighbor_sq_distances as neighbor_sq_distances,
)
from .hypersphere import (
    repulsion_loss as repulsion_loss,
)
from .images import (
    Category as Category,
)
from .images import (
    Frame as Frame,
)
from .images import (
    TestImage as TestImage,
)
from .images import (
    decode as decode,
)
from .images import (
    frame_of as frame_of,
)
from .images import (
    list_categories as list_categories,
)
from .images import (
    list_images as list_images,
)
from .images import (
    load_batches as load_batches,
)
from .images import (
    network_pixels as network_pixels,
)
from .images import (
    open_category as open_category,
)
from .images import (
    plain_folder as plain_folder,
)
from .maps import (
    MapMaker as MapMaker,
)
from .maps import (
    image_scores as image_scores,
)
from .maps import (
    to_source as to_source,
)
from .metrics import (
    PixelMetrics as PixelMetrics,
)
from .metrics import (
    Threshold as Threshold,
)
from .metrics import (
    auroc as auroc,
)
from .metrics import (
    auroc_interval as auroc_interval,
)
from .metrics import (
    conformal_threshold as conformal_threshold,
)
from .metrics import (
    f1_threshold as f1_threshold,
)
from .metrics import (
    paired_auroc_difference as paired_auroc_difference,
)
from .moments import (
    Moments as Moments,
)
from .moments import (
    RunningMoments as RunningMoments,
)
from .report import (
    overlay as overlay,
)
from .report import (
    query_panel as query_panel,
)
from .report import (
    save_picture as save_picture,
)
from .scorer import (
    ScoredBatch as ScoredBatch,
)
from .scorer import (
    Scorer as Scorer,
)
from .specs import (
    BankSpec as BankSpec,
)
from .specs import (
    DescriptorSpec as DescriptorSpec,
)
from .specs import (
    FeatureSpec as FeatureSpec,
)
from .specs import (
    IndexSpec as IndexSpec,
)
from .specs import (
    ModelSpec as ModelSpec,
)
from .specs import (
    ScoreSpec as ScoreSpec,
)
from .specs import (
    TrainSpec as TrainSpec,
)
from .specs import (
    preset as preset,
)
from .store import (
    PatchStore as PatchStore,
)
from .store import (
    StoredImage as StoredImage,
)
from .store import (
    StoreHeader as StoreHeader,
)
from .store import (
    StoreWriter as StoreWriter,
)
from .workflows.build import (
    BuildReport as BuildReport,
)
from .workflows.build import (
    GoodImages as GoodImages,
)
from .workflows.build import (
    build as build,
)
from .workflows.build import (
    compress_store as compress_store,
)
from .workflows.calibrate import (
    score_held_out as score_held_out,
)
from .workflows.calibrate import (
    split_held_out as split_held_out,
)
from .workflows.evaluate import (
    Evaluation as Evaluation,
)
from .workflows.evaluate import (
    TestRow as TestRow,
)
from .workflows.evaluate import (
    evaluate as evaluate,
)
from .workflows.extract import (
    extract as extract,
)
from .workflows.extract import (
    store_header as store_header,
)
from .workflows.extract import (
    store_path as store_path,
)
from .workflows.query import (
    Match as Match,
)
from .workflows.query import (
    QueryResult as QueryResult,
)
from .workflows.query import (
    WorstPatch as WorstPatch,
)
from .workflows.query import (
    query as query,
)
from .workflows.query import (
    query_picture as query_picture,
)
from .workflows.score import (
    ScoreReport as ScoreReport,
)
from .workflows.score import (
    score_folder as score_folder,
)
from .workflows.solar_cells import (
    CREDIT as CREDIT,
)
from .workflows.solar_cells import (
    CellSplit as CellSplit,
)
from .workflows.solar_cells import (
    lay_out_cells as lay_out_cells,
)
from .workflows.solar_cells import (
    split_cells as split_cells,
)
from .workflows.train import (
    EpochLog as EpochLog,
)
from .workflows.train import (
    Trainer as Trainer,
)
from .workflows.train import (
    TrainReport as TrainReport,
)
from .workflows.train import (
    median_radius as median_radius,
)
from .workflows.train import (
    open_store as open_store,
)
from .workflows.train import (
    train as train,
)
