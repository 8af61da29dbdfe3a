import torch


def quad_distance(points: torch.Tensor, of: torch.Tensor, target: torch.Tensor, relative: bool = True) -> torch.Tensor:
    """Mean distance of points from where they should be, for each object: `[N]`.

    points `[M,P,2]`, the P corners of an object in the order around it; of, int64 `[M]`: which object each P of them are
    said of, by one or more cells, whose mean counts; target `[N,P,2]`. Which corner is said first does not matter: of the P
    orders around the object the nearest counts. A document does not say where its corners begin, and a network could not
    learn to change its mind at 45 degrees.
    relative: as a share of the object's diagonal, the mean of the distances from each corner to the one opposite.
    """
    target = target.to(points.device).to(points)
    count = points.shape[1]
    orders = torch.stack([target.roll(k, 1) for k in range(count)], 1)[of]                    # [M,P,P,2]
    away = (points[:, None] - orders).square().sum(3).clamp_min(1e-12).sqrt().mean(2).amin(1)  # [M]
    if relative:
        away = away / (target - target.roll(count // 2, 1)).square().sum(2).sqrt().mean(1)[of]
    times = torch.bincount(of, minlength=len(target)).clamp_min(1)
    return away.new_zeros(len(target)).index_add(0, of, away) / times
