"""What an operator call costs the host: its class, whose time a calibration measures with tiny tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modelmeter.errors import UnknownNameError

HOST_CLASSES: tuple[str, ...] = (
    "view",  # a new tensor over the same memory
    "elementwise",  # pointwise kernels and copies into one result of the operand's shape
    "reduction",  # one figure per row or slice, norms and softmax included
    "gemm",  # products and convolutions; a recurrent stack as one call, which is a lower bound where it runs in steps
    "attention",
    "indexing",  # gather, scatter, sort and search: several kernels, some with temporaries
    "allocating",  # joins, pads and fills: a result of another shape than any operand
    "module",  # the call of an nn.Module around its operators
    "turn",  # on a CPU, what any call takes longer in turn with others than in a row: its code has left the caches
)
"""Classes of host time per call; `modelmeter.predict.calibration.HostCosts.classes` is keyed by them."""


class UnknownOperatorError(UnknownNameError):
    """An operator of no class: its host time is not known."""


# Names without "aten::"; an in-place form (a name with "_" at its end) is of the class of its out-of-place form.
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "view": """
            _conj _neg_view _unsafe_view adjoint alias as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors
            broadcast_to chunk conj detach diagonal dsplit expand expand_as hsplit imag lift_fresh lift_fresh_copy
            linalg_diagonal mH mT matrix_H meshgrid moveaxis movedim narrow numpy_T permute positive real requires_grad
            select slice split split_with_sizes squeeze swapaxes swapdims sym_size t tensor_split transpose unbind
            unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze view view_as view_as_complex
            view_as_real vsplit
        """,
        "elementwise": """
            __and__ __lshift__ __or__ __rshift__ __xor__ _prelu_kernel _to_copy abs absolute acos acosh add addcdiv
            addcmul addr alpha_dropout angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2
            atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp
            clamp_max clamp_min clip clone complex conj_physical contiguous copy copysign cos cosh cross deg2rad digamma
            div divide dropout elu eq erf erfc erfinv exp exp2 expm1 feature_alpha_dropout feature_dropout fill fix
            flatten float_power floor floor_divide fmax fmin fmod frac gcd ge gelu ger glu greater greater_equal gt
            hardshrink hardsigmoid hardswish hardtanh heaviside i0 igamma igammac isclose isfinite isinf isnan isneginf
            isposinf isreal kron lcm ldexp le leaky_relu lerp less less_equal lgamma linalg_cross linalg_vander log
            log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt
            masked_fill maximum minimum mish mul multiply mvlgamma nan_to_num native_dropout ne neg negative nextafter
            not_equal outer polar polygamma pow prelu rad2deg ravel reciprocal relu relu6 remainder reshape reshape_as
            resolve_conj resolve_neg round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus
            softshrink special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_digamma
            special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
            special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e
            special_log1p special_log_ndtr special_logit special_ndtr special_ndtri special_polygamma special_psi
            special_sinc special_xlog1py special_xlogy special_zeta sqrt square sub subtract tan tanh threshold to tril
            triu true_divide trunc type_as vander where xlogy zero
        """,
        "reduction": """
            _aminmax _is_all_true _log_softmax _safe_softmax _softmax _weight_norm _weight_norm_interface
            adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
            adaptive_max_pool3d all amax amin aminmax any argmax argmin avg_pool1d avg_pool2d avg_pool3d batch_norm
            binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss count_nonzero cross_entropy_loss
            cummax cummin cumprod cumsum cumulative_trapezoid diff fractional_max_pool2d fractional_max_pool3d
            frobenius_norm group_norm hinge_embedding_loss huber_loss instance_norm kl_div kthvalue l1_loss layer_norm
            linalg_trace linalg_vector_norm log_softmax logcumsumexp logsumexp margin_ranking_loss max max_pool1d
            max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
            max_unpool3d mean median min mode mse_loss multi_margin_loss multilabel_margin_loss nanmean nanmedian
            nanquantile nansum native_layer_norm nll_loss nll_loss2d nll_loss_nd norm poisson_nll_loss prod quantile
            quantize_rows renorm rms_norm smooth_l1_loss soft_margin_loss softmax special_log_softmax special_logsumexp
            special_softmax std std_mean sum sum_to_size trace trapezoid trapz triplet_margin_loss var var_mean
        """,
        "gemm": """
            _addmm_activation _grouped_mm _int_mm _scaled_mm addbmm addmm addmv baddbmm bilinear
            block_scaled_grouped_linear block_scaled_linear bmm conv1d conv2d conv3d conv_tbc conv_transpose1d
            conv_transpose2d conv_transpose3d convolution dot einsum grouped_linear gru gru_cell inner linalg_matmul
            linalg_matrix_power linalg_vecdot linear lstm lstm_cell matmul matrix_power mm mv rnn_relu rnn_relu_cell
            rnn_tanh rnn_tanh_cell tensordot vdot
        """,
        "attention": "flash_attention flex_attention scaled_dot_product_attention",
        "indexing": """
            _cdist_forward _embedding_bag _embedding_bag_forward_only _euclidean_dist _fft_c2c _fft_c2r _fft_r2c
            _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _pdist_forward
            _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d affine_grid_generator argsort
            bincount bucketize cdist cholesky cholesky_inverse cholesky_solve col2im cosine_similarity det dist
            embedding embedding_bag fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn
            fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn gather
            grid_sampler grid_sampler_2d grid_sampler_3d histc index index_add index_copy index_fill index_put
            index_reduce index_select inverse isin istft linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det
            linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex
            linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_matrix_exp linalg_matrix_norm
            linalg_matrix_rank linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex
            linalg_solve_triangular linalg_svd linalg_svdvals logdet masked_scatter matrix_exp msort nuclear_norm
            one_hot pairwise_distance pdist pinverse put qr repeat_interleave scatter scatter_add scatter_reduce
            searchsorted segment_reduce slogdet sort stft svd take take_along_dim topk triangular_solve
            upsample_nearest3d upsample_trilinear3d
        """,
        "allocating": """
            _upsample_bicubic2d_aa _upsample_bilinear2d_aa alias_copy arange as_strided_copy bartlett_window bernoulli
            binomial blackman_window block_diag cartesian_prod cat cauchy channel_shuffle column_stack concat
            concatenate constant_pad_nd detach_copy diag diag_embed diagflat diagonal_copy diagonal_scatter dstack empty
            empty_like empty_strided expand_copy exponential eye fft_fftfreq fft_fftshift fft_ifftshift fft_rfftfreq
            flip fliplr flipud full full_like geometric hamming_window hann_window hstack im2col kaiser_window linspace
            log_normal logspace multinomial narrow_copy native_channel_shuffle new_empty new_full new_ones new_zeros
            normal ones ones_like pad pad_sequence permute_copy pixel_shuffle pixel_unshuffle poisson rand rand_like
            randint randint_like randn randn_like random randperm reflection_pad1d reflection_pad2d reflection_pad3d
            repeat replication_pad1d replication_pad2d replication_pad3d resize_as roll rot90 row_stack scalar_tensor
            select_copy select_scatter slice_copy slice_scatter squeeze_copy stack t_copy tile transpose_copy
            tril_indices triu_indices unfold_copy uniform unravel_index unsqueeze_copy upsample_bicubic2d
            upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d view_copy vstack zeros
            zeros_like
        """,
    }
)
_CLASS: Mapping[str, str] = MappingProxyType({name: kind for kind, names in _NAMES.items() for name in names.split()})


def host_class(op: str) -> str:
    """Return the class of an operator by its ATen name.

    Raises
    ------
    UnknownOperatorError
        When no class has it; there is no default.

    Examples
    --------
    >>> host_class("aten::transpose"), host_class("aten::mul_"), host_class("dsocr_graph::grouped_linear")
    ('view', 'elementwise', 'gemm')
    """
    name = op.rpartition("::")[2]
    in_place = name.endswith("_") and not name.endswith("__")
    found = _CLASS.get(name[:-1] if in_place else name)
    if found is None:
        hint = "Add the name to the class of operators that cost the host alike, in modelmeter/predict/host.py"
        raise UnknownOperatorError("operator", op, _CLASS, hint=hint)
    return found
