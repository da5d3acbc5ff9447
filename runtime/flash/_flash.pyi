import numpy as np

class Info:
    layers: int
    d_model: int
    d_ff: int
    activation: int
    gated: bool
    dtype: int
    group_size: int
    selector: int
    direct_io: bool
    read_alignment_bytes: int
    bundle_bytes: int
    file_bytes: int
    selector_bytes: int
    identity: bytes

class Stats:
    kernels: int
    budget_bytes: int
    held_bytes: int
    held_peak_bytes: int
    table_rows: int
    layers_computed: int
    reads: int
    bytes_read: int
    bytes_wanted: int
    neurons_selected: int
    cache_hits: int
    neurons_loaded: int
    neurons_streamed: int
    neurons_evicted: int
    neurons_computed: int
    prefetched: int
    wait_ns: int
    read_ns: int
    busy_ns: int
    table_ns: int
    select_ns: int
    compute_ns: int

class ModelInfo:
    vocab: int
    max_positions: int
    heads: int
    kv_heads: int
    head_dim: int
    eos: list[int]
    weights_bytes: int

class ModelStats:
    position: int
    tokens: int
    weights_bytes: int
    kv_bytes: int
    total_ns: int
    attention_ns: int
    head_ns: int
    overhead_ns: int
    session: Stats

class Options:
    techniques: int
    budget_bytes: int
    reader_threads: int
    compute_threads: int
    window_tokens: int
    pinned_neurons: int
    merge_gap_bytes: int
    chunk_bytes: int
    kernels: int
    selector: int
    select_share: float
    miss_weight: float

class ModelOptions:
    mode: int
    context_tokens: int
    kv_dtype: int
    read_ahead: int
    prefetch: int
    session: Options

class Session:
    def ffn(self, layer: int, x: np.ndarray, mode: str, neurons: np.ndarray | None = None) -> np.ndarray: ...
    def prefetch(self, layer: int, x: np.ndarray | None = None, neurons: np.ndarray | None = None) -> None: ...
    def select(self, layer: int, x: np.ndarray) -> np.ndarray: ...
    def resident(self, layer: int) -> np.ndarray: ...
    def cancel(self) -> None: ...
    def resume(self) -> None: ...
    def reset(self) -> None: ...
    def stats(self) -> Stats: ...

class Model:
    def decode(self, tokens: np.ndarray) -> np.ndarray: ...
    def decode_all(self, tokens: np.ndarray) -> np.ndarray: ...
    def generate(self, prompt: np.ndarray, max_new: int) -> np.ndarray: ...
    def resident(self, layer: int) -> np.ndarray: ...
    def truncate(self, tokens: int) -> None: ...
    def cancel(self) -> None: ...
    def resume(self) -> None: ...
    def reset(self) -> None: ...
    def stats(self) -> ModelStats: ...

class Pack:
    def __init__(self, path: str, direct_io: bool = True) -> None: ...
    @property
    def info(self) -> Info: ...
    def verify(self) -> None: ...
    def floor_bytes(self, options: Options) -> int: ...
    def session(self, options: Options) -> Session: ...
    @property
    def model_info(self) -> ModelInfo: ...
    def model_floor_bytes(self, options: ModelOptions) -> int: ...
    def model(self, options: ModelOptions) -> Model: ...
