import torch
import torch.nn.functional as F


def heatmap_focal(logits: torch.Tensor, target: torch.Tensor, alpha: float = 2.0, beta: float = 4.0
                  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Penalty-reduced focal loss on heatmaps: (sum over the cells `[B]`, number of positive cells `[B]`).

    CornerNet, Law and Deng 2018, https://arxiv.org/abs/1808.01244; CenterNet, Zhou et al. 2019,
    https://arxiv.org/abs/1904.07850, equation 1, p = sigmoid(logits):
        -(1 - p)^alpha log p                       where target is 1, an object's center
        -(1 - target)^beta p^alpha log(1 - p)      elsewhere; target falls from 1 around a center, so a near miss costs less
    logits, target: `[B,...]`, a heatmap of any number of dimensions for each class; target in [0, 1]. The loss of a batch
    is sum / number of positives over all images and ranks, which one image, and one rank, cannot know.
    """
    if logits.shape != target.shape:
        raise ValueError(f"logits {list(logits.shape)} and target {list(target.shape)} must be of the same shape")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))      # [B,...]; bfloat16's log is too coarse
    positive = target == 1                                                    # [B,...]
    hit = logits.neg().sigmoid() ** alpha * F.logsigmoid(logits)
    miss = (1 - target) ** beta * logits.sigmoid() ** alpha * F.logsigmoid(-logits)
    return -torch.where(positive, hit, miss).flatten(1).sum(1), positive.flatten(1).sum(1)
