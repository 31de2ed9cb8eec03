"""Third parties' trainers: what public ones do, one idea each."""

from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from tiny import nnUNetTrainerTiny
from torch import Tensor, nn


class LoaderOfFiles(nnUNetDataLoader):
    """Reads more of its dataset than nnU-Net's own loader does."""

    def generate_train_batch(self) -> dict[str, Any]:
        assert self._data.source_folder
        assert list(self._data.identifiers) == list(self._data.list_own())
        return super().generate_train_batch()


class ForeignReader(nnUNetTrainerTiny):
    """Dataset with a method of its own; step that looks into target and loss; loss with more."""

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        datasets = super().get_tr_and_val_datasets()
        for dataset in datasets:
            own = type(dataset)
            methods = {"list_own": lambda self: self.identifiers}
            dataset.__class__ = type("OwnDataset", (own,), methods)
        return datasets

    def get_dataloaders(self) -> tuple[Any, Any]:
        loaders = super().get_dataloaders()
        for loader in loaders:
            loader.data_loader.__class__ = LoaderOfFiles
        return loaders

    def _build_loss(self) -> nn.Module:
        base = super()._build_loss()

        class Weighted(nn.Module):
            weight = 1.0

            def forward(self, output: Any, target: Any, image: Tensor | None = None) -> Tensor:
                loss = base(output, target)
                return loss if image is None else loss + 0 * self.weight * image.mean()

        return Weighted()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.loss.weight = 1 / (1 + self.current_epoch)
        if self.current_epoch == self.num_epochs - 1:
            self.loss = self._build_loss()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        data, target = batch["data"], batch["target"]
        assert isinstance(target, list)
        assert len(target) == 2 == len(self._get_deep_supervision_scales())
        assert target[0].shape[2:] == data.shape[2:]
        self.optimizer.zero_grad()
        loss = self.loss(self.network(data), target, image=data)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}


class ForeignNoLoss(nnUNetTrainerTiny):
    """A step with a loss of its own."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        loss = self.network(batch["data"])[0].square().mean()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}


class ForeignDatasets(nnUNetTrainerTiny):
    """Loaders with a training dataset of their own."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        loaders = super().get_dataloaders()
        data = loaders[0].data_loader
        data._data = nnUNetTrainerTiny.get_tr_and_val_datasets(self)[0]
        data.transforms = loaders[1].data_loader.transforms
        return loaders


class ForeignCrop(nnUNetTrainerTiny):
    """A step on half of each patch."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        half = [part[..., : part.shape[-1] // 2] for part in batch["target"]]
        return super().train_step({**batch, "data": batch["data"][..., :8], "target": half})


class ForeignOneOutput(nnUNetTrainerTiny):
    """One output, and deep supervision forgotten."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(num_input_channels, 4, 3, padding=1), nn.Conv3d(4, num_output_channels, 1)
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        pass


class ForeignNoSwitch(ForeignOneOutput):
    """The same, with nnU-Net's switch of deep supervision, which is for nnU-Net's networks."""

    set_deep_supervision_enabled = nnUNetTrainerTiny.set_deep_supervision_enabled


class ForeignLength(nnUNetTrainerTiny):
    """The length of the training comes with the checkpoint."""

    length = 6

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        self.num_epochs = self.length
        self.lr_scheduler = PolyLRScheduler(self.optimizer, self.initial_lr, self.num_epochs)
