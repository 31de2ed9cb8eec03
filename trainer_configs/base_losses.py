"""nnU-Net's trainer with losses that it does not ship: each for itself, and `_MAPO` by the rule."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo.zoo.losses import (
    DiceFocalLoss,
    FocalLoss,
    HausdorffLoss,
    LovaszLoss,
    TargetFormat,
    replace_loss,
)


class nnUNetTrainerFocalLoss(nnUNetTrainer):
    """Focal loss."""

    def _build_loss(self):
        targets = TargetFormat.of(self.label_manager)
        return replace_loss(super()._build_loss(), lambda _: FocalLoss(targets))


class nnUNetTrainerDiceFocalLoss(nnUNetTrainer):
    """nnU-Net's Dice + focal loss."""

    def _build_loss(self):
        targets = TargetFormat.of(self.label_manager)
        return replace_loss(super()._build_loss(), lambda stock: DiceFocalLoss(stock.dc, targets))


class nnUNetTrainerLovaszLoss(nnUNetTrainer):
    """Lovász-softmax."""

    def _build_loss(self):
        targets = TargetFormat.of(self.label_manager)
        batch_dice = self.configuration_manager.batch_dice
        return replace_loss(
            super()._build_loss(), lambda _: LovaszLoss(targets, batch_dice=batch_dice)
        )


class nnUNetTrainerHausdorffLoss(nnUNetTrainer):
    """nnU-Net's Dice + CE + Hausdorff loss."""

    def _build_loss(self):
        targets = TargetFormat.of(self.label_manager)
        return replace_loss(super()._build_loss(), lambda stock: HausdorffLoss(stock, targets))
