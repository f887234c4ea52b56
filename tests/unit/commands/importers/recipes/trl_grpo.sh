# The flags that TRL's documentation starts its GRPO script with, LoRA and a reward model included.
accelerate launch --config_file=zero2.yaml --num_processes 2 \
    trl/scripts/grpo.py \
    --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
    --dataset_name trl-lib/DeepMath-103K \
    --reward_funcs accuracy_reward get_soft_overlong_punishment my_rewards.shorter \
    --reward_weights 1.0 0.5 -1 \
    --learning_rate 1e-5 \
    --lr_scheduler_type constant_with_warmup \
    --warmup_steps 10 \
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --steps_per_generation 8 \
    --num_generations 8 \
    --num_iterations 2 \
    --max_steps 1000 \
    --max_completion_length 256 \
    --use_vllm \
    --vllm_mode colocate \
    --vllm_gpu_memory_utilization 0.25 \
    --beta 0.001 \
    --epsilon 0.2 --epsilon_high 0.28 --delta 4.0 \
    --loss_type dapo \
    --scale_rewards false \
    --mask_truncated_completions \
    --use_peft --lora_r 32 --lora_alpha 16 --lora_target_modules q_proj v_proj \
    --top_p 0.95 \
    --report_to wandb tensorboard \
    --output_dir Qwen2.5-0.5B-GRPO \
    --learing_rate_typo 3
