"""An image classifier in the style of Opacus' CIFAR-10 example: validator, memory manager, target epsilon."""

import argparse

import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from opacus.validators import ModuleValidator
from torch.utils.data import DataLoader, TensorDataset


def convnet(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(start_dim=1, end_dim=-1),
        nn.Linear(8, num_classes, bias=True),
    )


def accuracy(preds, labels):
    return (preds == labels).mean()


def train(args, model, train_loader, optimizer, privacy_engine, epoch, device):
    model.train()
    criterion = nn.CrossEntropyLoss()

    losses = []
    top1_acc = []

    with BatchMemoryManager(
        data_loader=train_loader,
        max_physical_batch_size=args.max_physical_batch_size,
        optimizer=optimizer,
    ) as memory_safe_data_loader:
        # one item after the other
        for i, (images, target) in enumerate(memory_safe_data_loader):
            images = images.to(device)
            target = target.to(device)

            optimizer.zero_grad()
            output = model(images)
            loss = criterion(output, target)
            preds = np.argmax(output.detach().cpu().numpy(), axis=1)
            acc1 = accuracy(preds, target.cpu().numpy())
            losses.append(loss.item())
            top1_acc.append(acc1)

            loss.backward()
            optimizer.step()

    epsilon = privacy_engine.accountant.get_epsilon(delta=args.delta)
    print(
        f"""Train Epoch: {epoch}
    Loss: {np.mean(losses):.6f} Acc@1: {np.mean(top1_acc):.6f}
    (ε = {epsilon:.2f}, δ = {args.delta})"""
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-physical-batch-size", type=int, default=16)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--secure-rng", action="store_true", default=False)
    args = parser.parse_args()

    torch.manual_seed(0)
    labels = torch.randint(3, (128,))
    train_dataset = TensorDataset(torch.randn(3, 1, 8, 8)[labels] + torch.randn(128, 1, 8, 8), labels)
    train_loader = DataLoader(train_dataset, batch_size=args.batch_size, shuffle=True)

    device = torch.device("cpu")
    model = convnet(3)
    model = ModuleValidator.fix(model)
    ModuleValidator.validate(model, strict=True)
    model = model.to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    privacy_engine = PrivacyEngine(
        secure_mode=args.secure_rng,
    )
    model, optimizer, train_loader = privacy_engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=train_loader,
        target_epsilon=8.0,
        target_delta=args.delta,
        epochs=args.epochs,
        max_grad_norm=1.0,
        grad_sample_mode="hooks",
    )

    for epoch in range(1, args.epochs + 1):
        train(args, model, train_loader, optimizer, privacy_engine, epoch, device)
    print("parameters", len(model._module.state_dict()))
    print("history", privacy_engine.accountant.history)


if __name__ == "__main__":
    main()
