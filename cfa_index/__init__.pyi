"""The public names, a home each; `__init__.py` loads them when they are first used."""

from .backbones import (
    BACKBONES as BACKBONES,
    Backbone as Backbone,
    BackboneEntry as BackboneEntry,
    BackboneFacts as BackboneFacts,
    WeightsOrigin as WeightsOrigin,
    backbone_entry as backbone_entry,
    backbone_facts as backbone_facts,
    backbone_names as backbone_names,
    forward_bytes as forward_bytes,
    load_backbone as load_backbone,
    timm_offer as timm_offer,
)
from .bank import (
    Bank as Bank,
    IndexChoice as IndexChoice,
    IndexState as IndexState,
    IndexTrial as IndexTrial,
    MemoryBank as MemoryBank,
    Neighbors as Neighbors,
    PatchSources as PatchSources,
    SearchIndex as SearchIndex,
    SpreadBank as SpreadBank,
    build_faiss as build_faiss,
    exact_sq_distances as exact_sq_distances,
    faiss_version as faiss_version,
    kmeans as kmeans,
    make_index as make_index,
    nearest_rows as nearest_rows,
    recall_at as recall_at,
    recipes_of as recipes_of,
    set_threads as set_threads,
    shared_threads as shared_threads,
)
from .baseline import RunningBaseline as RunningBaseline
from .bundle import (
    ImageScore as ImageScore,
    Manifest as Manifest,
    MemorySource as MemorySource,
    ModelBundle as ModelBundle,
    ViewScore as ViewScore,
    current_generation as current_generation,
    list_models as list_models,
    read_manifest as read_manifest,
)
from .compress import (
    PatchSample as PatchSample,
    PatchStream as PatchStream,
    coreset_bank as coreset_bank,
    ema_bank as ema_bank,
    full_bank as full_bank,
    gather_patches as gather_patches,
    greedy_k_centre as greedy_k_centre,
    hybrid_bank as hybrid_bank,
    kmeans_bank as kmeans_bank,
    mean_bank as mean_bank,
    random_bank as random_bank,
    sample_patches as sample_patches,
)
from .defects import (
    DEFECT_KINDS as DEFECT_KINDS,
    DefectKind as DefectKind,
    SyntheticDefect as SyntheticDefect,
    draw_defect as draw_defect,
)
from .descriptor import (
    PatchDescriptor as PatchDescriptor,
    initial_descriptor as initial_descriptor,
)
from .devices import (
    cpp_compiler as cpp_compiler,
    multiplies_bf16 as multiplies_bf16,
    resolve_device as resolve_device,
    resolve_devices as resolve_devices,
    reuse_freed_memory as reuse_freed_memory,
    usable_cores as usable_cores,
)
from .engines import (
    RayCluster as RayCluster,
    each_on_ray as each_on_ray,
    run_on_ray as run_on_ray,
)
from .errors import (
    BankError as BankError,
    BundleError as BundleError,
    CardMemoryError as CardMemoryError,
    CfaIndexError as CfaIndexError,
    DatasetError as DatasetError,
    DeviceError as DeviceError,
    EngineError as EngineError,
    ImageError as ImageError,
    OutputError as OutputError,
    SpecError as SpecError,
    StoreError as StoreError,
    WeightsError as WeightsError,
)
from .events import (
    Event as Event,
    Listener as Listener,
    Notice as Notice,
    StageAdvanced as StageAdvanced,
    StageEnded as StageEnded,
    StageStarted as StageStarted,
    StageTotal as StageTotal,
    ignore as ignore,
    stage as stage,
)
from .files import (
    atomic_path as atomic_path,
    json_text as json_text,
    write_bytes as write_bytes,
    write_json as write_json,
    writing as writing,
)
from .footprint import (
    Footprint as Footprint,
    half_footprint as half_footprint,
    memories_footprint as memories_footprint,
)
from .hypersphere import (
    HypersphereLoss as HypersphereLoss,
    LossTerms as LossTerms,
    attraction_loss as attraction_loss,
    certainty_scores as certainty_scores,
    nearest_distances as nearest_distances,
    neighbor_sq_distances as neighbor_sq_distances,
    repulsion_loss as repulsion_loss,
)
from .images import (
    CardDecoder as CardDecoder,
    Category as Category,
    Frame as Frame,
    Jpeg as Jpeg,
    TestImage as TestImage,
    decode as decode,
    frame_of as frame_of,
    frames_of as frames_of,
    list_categories as list_categories,
    list_images as list_images,
    load_batches as load_batches,
    network_pixels as network_pixels,
    open_category as open_category,
    plain_folder as plain_folder,
    tile_boxes as tile_boxes,
    views_of as views_of,
)
from .maps import (
    MapMaker as MapMaker,
    image_scores as image_scores,
)
from .metrics import (
    BinningError as BinningError,
    F1Result as F1Result,
    ImageMetrics as ImageMetrics,
    Interval as Interval,
    PixelIntervals as PixelIntervals,
    PixelMetrics as PixelMetrics,
    PixelMetricsByType as PixelMetricsByType,
    Threshold as Threshold,
    auroc as auroc,
    auroc_interval as auroc_interval,
    average_precision as average_precision,
    conformal_threshold as conformal_threshold,
    f1_threshold as f1_threshold,
    image_metrics as image_metrics,
    image_metrics_by_type as image_metrics_by_type,
    paired_auroc_difference as paired_auroc_difference,
    pareto_frontier as pareto_frontier,
)
from .moments import (
    Moments as Moments,
    RunningMoments as RunningMoments,
)
from .places import (
    LocalPlace as LocalPlace,
    ObjectPlace as ObjectPlace,
    Place as Place,
    open_place as open_place,
)
from .presets import (
    preset as preset,
)
from .pyramid import (
    patches_at as patches_at,
)
from .report import (
    Cloud as Cloud,
    StudyRow as StudyRow,
    VerdictPicture as VerdictPicture,
    feature_view as feature_view,
    overlay as overlay,
    query_panel as query_panel,
    ratio_text as ratio_text,
    save_picture as save_picture,
    verdict_panel as verdict_panel,
)
from .resample import (
    fuse_maps as fuse_maps,
    to_source as to_source,
)
from .scorer import (
    ScoredBatch as ScoredBatch,
    Scorer as Scorer,
)
from .specs import (
    BankSpec as BankSpec,
    CardSpec as CardSpec,
    DescriptorSpec as DescriptorSpec,
    FeatureSpec as FeatureSpec,
    IndexSpec as IndexSpec,
    ModelSpec as ModelSpec,
    ScoreSpec as ScoreSpec,
    TrainSpec as TrainSpec,
)
from .stitch import Stitcher as Stitcher
from .store import (
    PatchStore as PatchStore,
    StoredImage as StoredImage,
    StoreHeader as StoreHeader,
    StoreWriter as StoreWriter,
)
from .workflows.build import (
    BuildReport as BuildReport,
    GoodImages as GoodImages,
    build as build,
)
from .workflows.calibrate import (
    calibrated_scorer as calibrated_scorer,
    score_held_out as score_held_out,
)
from .workflows.changes import LivingReport as LivingReport
from .workflows.compression import (
    compress_store as compress_store,
    patch_stream as patch_stream,
)
from .workflows.doctor import (
    Diagnosis as Diagnosis,
    examine as examine,
)
from .workflows.evaluate import (
    evaluate as evaluate,
)
from .workflows.evaluation import (
    EVALUATION_SCHEMA_VERSION as EVALUATION_SCHEMA_VERSION,
    MEASURES as MEASURES,
    BestEpoch as BestEpoch,
    Evaluation as Evaluation,
    ModelName as ModelName,
    PixelSummary as PixelSummary,
    PublishedEvaluation as PublishedEvaluation,
    SplitMetrics as SplitMetrics,
    TestRow as TestRow,
    mean_over_categories as mean_over_categories,
)
from .workflows.extract import (
    extract as extract,
    store_header as store_header,
    store_path as store_path,
)
from .workflows.figures import (
    draw_figures as draw_figures,
    prepare_figures as prepare_figures,
)
from .workflows.inventory import (
    Inventory as Inventory,
    take_inventory as take_inventory,
)
from .workflows.living import (
    RollbackReport as RollbackReport,
    add_images as add_images,
    reindex as reindex,
    remove_images as remove_images,
    rollback as rollback,
)
from .workflows.opening import (
    open_store as open_store,
    split_held_out as split_held_out,
)
from .workflows.probes import (
    Probes as Probes,
    draw_probes as draw_probes,
    probe_scores as probe_scores,
    split_probes as split_probes,
)
from .workflows.published import (
    evaluate_published as evaluate_published,
)
from .workflows.query import (
    Match as Match,
    QueryResult as QueryResult,
    WorstPatch as WorstPatch,
    query as query,
    query_picture as query_picture,
)
from .workflows.rotate import (
    RotateReport as RotateReport,
    RotationSpec as RotationSpec,
    rotate_category as rotate_category,
)
from .workflows.score import (
    ScoreReport as ScoreReport,
    score_folder as score_folder,
)
from .workflows.score_ray import score_folder_on_ray as score_folder_on_ray
from .workflows.score_report import (
    write_report as write_report,
)
from .workflows.select import (
    Selection as Selection,
    Trial as Trial,
)
from .workflows.solar_cells import (
    CREDIT as CREDIT,
    CellSplit as CellSplit,
    lay_out_cells as lay_out_cells,
    split_cells as split_cells,
)
from .workflows.start import (
    Start as Start,
    make_start as make_start,
    patch_moments as patch_moments,
)
from .workflows.study import (
    StudyReport as StudyReport,
    study as study,
)
from .workflows.study_cells import (
    StudySpec as StudySpec,
)
from .workflows.study_plan import (
    StudyPlan as StudyPlan,
    plan_study as plan_study,
)
from .workflows.train import (
    TrainReport as TrainReport,
    train as train,
)
from .workflows.trainer import (
    EpochLog as EpochLog,
    Trainer as Trainer,
    median_radius as median_radius,
)
from .workflows.verify import (
    Finding as Finding,
    verify as verify,
)
