"""Every row of the table of bad inputs, `data/bad_inputs.tsv`, and the tests that hold it.

CASES is the one place where that is to be seen. A row of a surface that is built (loader, config, api,
cli, server, batch) without a case fails here; those of `ui` get theirs together with that part, which
is not built yet. A case is a test, or those of its parameters that begin so, as pytest names
them; where a row tells of a flag that there is not, its case holds that nothing takes its place.

What an answer, an error or the log may not tell (`telling_nothing`) is looked for in every case.
All of them run once more without asserts: a check that is one would not be there.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NOT_BUILT = frozenset({"ui"})

FILE = "loading/test_checkpoint.py::test_a_malformed_file_is_an_error_that_names_it"
CONFIG = "loading/test_parse_config.py::test_a_value_that_we_do_not_know_names_file_key_and_value"
JSON = "loading/test_parse_config.py::test_a_config_that_is_no_plain_json_is_refused"
PIXELS = "loading/test_parse_config.py::test_pixel_rules_that_we_cannot_follow_are_refused"
PICKLE = "loading/test_checkpoint.py::test_pickles_are_refused_unread"
INDEX = "loading/test_checkpoint.py::test_a_bad_index_is_an_error"
TEMPLATE = "loading/test_template.py::test_a_template_is_text_that_is_never_run"
NO_CODE = "loading/test_no_code.py::test_nothing_that_runs_foreign_code_is_used"
PICTURE = "processing/test_image.py::test_a_bad_file_is_a_typed_error_and_the_next_picture_is_read"
SHOWN = "processing/test_bad_inputs.py::test_a_picture_is_shown_or_refused_in_words"
VIDEO = "processing/test_bad_inputs.py::test_a_video_is_shown_or_refused_in_words_and_soon"
WORKER = "processing/test_image.py::test_a_picture_that_crashes_or_subverts_its_worker_is_an_error"
TYPED = "processing/test_prompt.py::test_a_control_token_that_somebody_types_stays_text"
VALUE = "test_api.py::test_a_wrong_value_is_a_typed_error_and_the_next_is_answered"
FORM = "structured/test_schemas.py::test_a_hostile_form_costs_little"
BODY = "serve/test_bad_requests.py::test_a_bad_body_is_answered"
HEADERS = "serve/test_bad_requests.py::test_headers_decide_before_the_body"
URL = (
    "test_fetch.py::test_s029_s031_s032_what_is_not_plainly_an_address_is_refused_before"
    "_anybody_is_asked"
)
LYING = "test_fetch.py::test_p15_a_server_that_lies_costs_little_and_tells_nothing"
AUTH = "serve/test_auth.py::"
LOAD = "serve/test_load.py::"
AROUND = "cli/test_surroundings.py::"
SETTINGS = "test_settings.py::"
RUN = "cli/test_batch_command.py::test_"
COURSE = "batch/test_carry_out.py::test_"
STORAGE = "runs/test_storage_errors.py::test_"
REVIEW = "batch/test_import_review.py::test_"

LOADER: dict[str, tuple[str, ...]] = {
    "L001": (f"{FILE}[empty",),
    "L002": (f"{FILE}[header of 0 bytes",),
    "L003": (f"{FILE}[header of 2^63 bytes",),
    "L005": (f"{FILE}[header is a list",),
    "L006": (f"{FILE}[header is no UTF-8",),
    "L007": (f"{FILE}[two tensors share bytes",),
    "L008": (f"{FILE}[hole at the start",),
    "L010": (
        f"{FILE}[data cut",
        "loading/test_checkpoint.py::test_a_shard_that_is_damaged_is_named",
    ),
    "L011": ("loading/test_checkpoint.py::test_a_file_that_shrinks_after_its_check_is_not_mapped",),
    "L012": (f"{FILE}[shape overflows",),
    "L013": (f"{FILE}[negative shape",),
    "L015": (f"{FILE}[same name twice",),
    "L016": (
        f"{FILE}[100,001 tensors",
        "loading/test_checkpoint.py::test_a_header_of_67_mb_is_refused_before_it_is_read",
    ),
    "L017": ("loading/test_checkpoint.py::test_one_error_lists_all_that_does_not_fit",),
    "L018": ("loading/test_checkpoint.py::test_one_error_lists_all_that_does_not_fit",),
    "L020": ("loading/test_load_model.py::test_a_config_of_other_sizes_names_both_shapes",),
    "L021": (
        "vlm/test_local.py::test_weights_that_are_no_numbers_are_an_error_of_each_answer",
        "engine/test_sampler.py::test_a_logit_that_is_not_finite_is_an_error",
    ),
    # the hub tells the hashes; a folder of one's own has none, and there is no --verify
    "L022": ("loading/test_hub.py::test_a_damaged_file_is_an_error_and_is_fetched_again",),
    "L023": (f"{INDEX}[weight_map0",),
    "L025": (f"{INDEX}[weight_map10",),
    "L026": (
        "loading/test_checkpoint.py::test_a_link_out_of_the_folder_is_unsafe",
        "loading/test_checkpoint.py::test_links_inside_the_folder_and_into_the_hub_cache_are_followed",
    ),
    "L027": ("loading/test_checkpoint.py::test_a_fifo_is_refused_instead_of_waited_for",),
    "L028": (
        "loading/test_checkpoint.py::test_a_link_to_a_device_or_a_folder_is_not_a_regular_file",
    ),
    "L030": (
        f"{PICKLE}[pytorch_model.bin",
        "loading/test_pickled.py::test_a_pickle_that_would_run_code_is_refused_and_its_code_is_not_run",
    ),
    "L031": (f"{FILE}[a zip", f"{FILE}[a pickle"),
    "L032": (f"{PICKLE}[adapter_model.bin",),
    # there is no `qvl train --resume`: a .pt is refused wherever a model is named
    "L033": (f"{PICKLE}[state.pt", "loading/test_load_model.py::test_a_file_is_not_a_model_folder"),
    "L035": ("loading/test_parse_config.py::test_another_architecture_is_refused",),
    "L036": (f"{CONFIG}[hidden_act", NO_CODE),
    "L037": (f"{CONFIG}[torch_dtype",),
    "L038": (f"{CONFIG}[num_hidden_layers-1000000000",),
    "L040": (f"{JSON}[text0", f"{JSON}[text9"),
    "L041": (f'{JSON}[{{"a": 1, "a": 2}}', f'{JSON}[{{"b": '),
    "L042": (f"{CONFIG}[quantization_config",),
    "L043": (f"{CONFIG}[rope_scaling",),
    "L045": ("processing/test_tokenizer.py::test_a_tokenizer_of_another_kind_is_refused",),
    # a template is never rendered, and there is no --chat-template
    "L046": (f"{TEMPLATE}[L046", NO_CODE),
    "L047": (f"{TEMPLATE}[L047",),
    "L048": (f"{TEMPLATE}[L048",),
    "L050": (f"{TEMPLATE}[L050",),
    "L051": (f"{PIXELS}[rules0",),
    "L052": (f"{PIXELS}[rules4", f"{PIXELS}[rules6"),
    "L053": ("loading/test_parse_config.py::test_defaults_out_of_range_are_refused[values0",),
    "L055": ("loading/test_hub.py::test_offline_without_a_copy_says_how_to_get_one",),
    "L056": ("loading/test_hub.py::test_all_files_come_from_one_commit_though_the_branch_moves",),
    "L057": ("cli/test_models_command.py::test_pull_says_what_a_licence_forbids",),
    "L058": (
        "loading/test_hub.py::test_a_download_that_is_cut_goes_on_where_it_stopped",
        "loading/test_hub.py::test_a_cache_that_cannot_be_written_is_a_storage_error",
        "loading/test_hub.py::test_too_little_disk_is_found_before_the_download",
    ),
}

API: dict[str, tuple[str, ...]] = {
    "A002": (f"{PICTURE}[text.jpg",),
    "A003": (f"{PICTURE}[page.png",),
    "A004": (f"{PICTURE}[drawing.svg", f"{PICTURE}[bare.svg", f"{PICTURE}[utf16.svg"),
    "A005": (f"{PICTURE}[a.eps",),
    "A007": (
        f"{PICTURE}[bomb.png",
        "processing/test_image.py::test_the_parent_s_memory_stays_small",
    ),
    "A008": (f"{PICTURE}[header.png",),
    "A009": (f"{PICTURE}[max.png",),
    "A010": (f"{PICTURE}[zero.png",),
    "A012": (f"{PICTURE}[201.png",),
    "A013": ("processing/test_image.py::test_a_text_chunk_that_unpacks_to_64_mib_is_not_unpacked",),
    "A014": (f"{PICTURE}[crc.png",),
    "A015": (f"{PICTURE}[half.jpg",),
    "A017": (
        f"{SHOWN}[A017",
        "processing/test_image.py::test_pictures_come_upright",
        "processing/test_image.py::test_an_impossible_orientation_is_ignored_with_a_note",
    ),
    "A018": (f"{SHOWN}[A018", "processing/test_image.py::test_a_cmyk_jpeg_keeps_its_colours"),
    "A019": (
        "processing/test_image.py::test_16_bit_grey_keeps_its_levels",
        "processing/test_image.py::test_32_bit_grey_is_scaled_not_clipped",
    ),
    "A020": ("processing/test_image.py::test_a_transparent_palette_entry_is_white",),
    "A022": (f"{SHOWN}[A022",),
    "A023": (f"{SHOWN}[A023",),
    "A024": (
        f"{WORKER}[os.kill",
        "processing/test_image.py::test_a_dead_worker_is_replaced_unnoticed",
    ),
    "A025": ("processing/test_image.py::test_a_picture_that_never_ends_is_an_error",),
    "A027": ("processing/test_prompt.py::test_the_key_of_a_picture_tells_its_sides_apart",),
    "A028": (
        "processing/test_prompt.py::test_the_key_of_a_picture_tells_sizes_apart",
        "processing/test_prompt.py::test_pages_of_one_document_are_pictures_of_their_own",
    ),
    "A029": (f"{VALUE}[A029",),
    "A030": (f"{VALUE}[A030",),
    "A032": (
        "processing/test_image.py::test_a_fifo_a_socket_and_a_device_are_refused_at_once",
        "processing/test_image.py::test_a_folder_is_not_read",
    ),
    "A033": ("processing/test_image.py::test_what_cannot_be_a_path_is_a_wrong_parameter",),
    "A034": (
        f"{VIDEO}[A034",
        "processing/test_video.py::test_what_is_no_whole_video_is_refused_in_words",
    ),
    "A035": (
        "processing/test_pdf.py::test_a035_a_bad_document_is_a_typed_error_and_the_next_is_read",
        "processing/test_pdf.py::test_a035_actions_are_never_run",
    ),
    "A037": ("processing/test_image.py::test_a_bad_profile_is_a_note_and_the_picture_stays",),
    "A038": (f"{PICTURE}[a.heic",),
    "A039": (f"{VALUE}[A039",),
    "A040": (f"{TYPED}[qwen2_vl-<|im_", f"{TYPED}[qwen3_vl-<|im_"),
    "A042": (f"{VALUE}[A042", "test_api.py::test_what_looks_like_a_place_for_a_picture_is_none"),
    "A043": (
        f"{TYPED}[qwen3_vl-</think>",
        f"{TYPED}[qwen3_vl-<tool_call>",
        f"{TYPED}[qwen3_vl-<tool_response>",
    ),
    "A044": (
        "processing/test_prompt.py::test_what_a_file_is_called_and_tells_of_itself_is_not_said",
        "cli/test_task_commands.py::test_no_cell_is_a_formula",
    ),
    "A045": ("chat/test_conversation.py::test_without_approval_nothing_is_run",),
    "A047": (
        "test_api.py::test_control_characters_may_be_asked_about",
        "cli/test_task_commands.py::test_no_control_code_reaches_a_terminal",
        "processing/test_image.py::test_control_characters_and_long_names_are_tamed",
    ),
    "A048": (f"{VALUE}[A048", "test_api.py::test_a_long_text_is_refused_before_it_is_read"),
    "A049": (f"{VALUE}[A049", "processing/test_tokenizer.py::test_long_text_takes_reasonable_time"),
    "A050": (f"{VALUE}[A050",),
    "A052": (f"{VALUE}[A052",),
    "A053": (f"{VALUE}[A053", f"{BODY}[A bias"),
    "A054": (f"{VALUE}[A054",),
    "A055": (f"{VALUE}[A055",),
    "A057": (f"{VALUE}[A057",),
    "A058": (f"{VALUE}[A058",),
    "A059": (f"{VALUE}[A059", "test_api.py::test_a_nested_repetition_costs_nothing", FORM),
    "A060": (f"{VALUE}[A060", "test_api.py::test_no_part_of_a_schema_is_fetched", FORM),
    "A062": (f"{VALUE}[A062",),
    "A063": ("test_api.py::test_a_thousand_pictures_are_refused_before_the_first_is_read",),
    "A064": ("vlm/test_doors.py::test_threads_share_the_model",),
    "A065": (
        "test_api.py::test_a_closed_model_says_so_at_once",
        "test_api.py::test_a_forked_child_is_told_to_open_its_own",
    ),
}

SERVER: dict[str, tuple[str, ...]] = {
    "S001": (
        f"{AUTH}test_no_route_opens_without_its_key",
        f"{AUTH}test_a_websocket_is_guarded_too",
        f"{AUTH}test_the_open_routes_say_nothing",
    ),
    "S002": (
        f"{AUTH}test_a_key_that_is_none_is_answered_like_any_other",
        f"{AUTH}test_a_key_of_a_megabyte_is_not_read_to_its_end",
        f"{AUTH}test_no_route_opens_without_its_key",
    ),
    "S003": (
        f"{AUTH}test_no_spelling_of_an_address_opens_it",
        f"{AUTH}test_without_keys_only_this_machines_names_are_let_in",
    ),
    "S004": (f"{AUTH}test_no_spelling_of_an_address_opens_it",),
    "S006": ("cli/test_serve_command.py::test_others_are_not_let_in_without_a_key",),
    "S007": (f"{AUTH}test_pages_of_others_are_told_nothing",),
    "S008": (f"{HEADERS}[headers0",),
    "S009": (f"{BODY}[S009",),
    "S011": (f"{BODY}[S011",),
    "S012": (
        f"{BODY}[S012",
        "serve/test_bad_requests.py::test_a_length_over_the_limit_is_refused_before_the_body",
    ),
    "S013": (
        "serve/test_bad_requests.py::test_chunks_without_an_end_are_refused_at_the_limit",
        "serve/test_bad_requests.py::test_who_is_too_slow_to_ask_is_let_go",
    ),
    "S014": (
        "serve/test_bad_requests.py::test_who_is_too_slow_to_ask_is_let_go",
        "serve/test_bad_requests.py::test_many_who_are_slow_do_not_hold_up_the_others",
    ),
    "S016": (f"{HEADERS}[headers5",),
    "S017": (f"{HEADERS}[headers2",),  # nothing is uploaded as a form
    "S018": (f"{BODY}[S018",),
    "S019": (f"{BODY}[S019",),
    "S021": (f"{BODY}[S021",),
    "S022": (f"{BODY}[S022",),
    "S023": (f"{BODY}[S023",),
    "S024": (
        f"{BODY}[S024",
        "test_fetch.py::test_s024_other_spellings_of_loopback_are_refused",
        "test_fetch.py::test_a_forbidden_address_is_refused_as_literal_by_name_and_by_redirect",
    ),
    "S026": ("test_fetch.py::test_s026_a_name_whose_address_changes_is_checked_each_time",),
    "S027": (
        "test_fetch.py::test_a_forbidden_address_is_refused_as_literal_by_name_and_by_redirect",
    ),
    "S028": (
        f"{LYING}[a redirect",
        "test_fetch.py::test_three_redirects_are_followed_and_no_fourth",
    ),
    "S029": (f"{BODY}[S029", URL),
    "S031": (f"{BODY}[S031", f"{URL}[https://a.com:25/"),
    "S032": (f"{BODY}[S032", f"{URL}[http://user", "test_fetch.py::test_names_hold_no_password"),
    "S033": ("test_fetch.py::test_s033_the_request_says_no_more_than_it_must",),
    "S034": (f"{LYING}[no length, no end", f"{LYING}[chunks without end"),
    "S036": (f"{LYING}[gzip",),
    "S037": (f"{LYING}[HTML",),
    "S038": (
        f"{LYING}[404",
        f"{LYING}[500",
        f"{LYING}[reset in the body",
        f"{LYING}[TLS junk",
        "test_fetch.py::test_s038_certificates_are_checked_for_the_name_that_was_asked_for",
    ),
    "S039": (f"{BODY}[S039",),
    "S041": (f"{BODY}[S041",),
    "S042": (f"{BODY}[S042",),
    "S043": (f"{BODY}[S043",),
    "S044": (f"{BODY}[S044",),
    "S046": (
        "engine/test_faults.py::test_a_fault_at_any_point_ends_one_request_at_most",
        "serve/test_bad_requests.py::test_a_fault_is_told_without_its_words",
    ),
    "S047": (
        "engine/test_sampler.py::test_a_logit_that_is_not_finite_is_an_error",
        "vlm/test_local.py::test_weights_that_are_no_numbers_are_an_error_of_each_answer",
    ),
    "S048": (
        "engine/test_engine.py::test_memory_that_runs_out_is_said_to_have_run_out",
        "vlm/test_local.py::test_memory_that_runs_out_at_one_picture_harms_no_other",
    ),
    "S049": (
        f"{LOAD}test_who_is_answered_by_a_process_that_is_killed_is_told_and_another_takes_its_place",
    ),
    "S051": (
        "engine/test_disconnects.py::test_a_thousand_disconnects_leave_nothing_behind",
        f"{LOAD}test_those_that_leave_leave_nothing_behind",
    ),
    "S052": (f"{LOAD}test_a_client_that_does_not_read_is_given_up",),
    "S053": (f"{LOAD}test_who_finds_the_queue_full_is_told_at_once",),
    "S054": (f"{LOAD}test_a_signal_lets_what_was_taken_end",),
    "S056": (f"{LOAD}test_a_signal_lets_what_was_taken_end",),
    "S057": ("cli/test_serve_command.py::test_a_port_in_use_is_one_line",),
    "S058": ("serve/test_bad_requests.py::test_a_route_or_method_that_is_not_there",),
    "S059": (
        "serve/test_bad_requests.py::test_an_ambiguous_length_is_refused_and_the_connection_closed",
    ),
    "S061": (
        f"{AUTH}test_no_route_opens_without_its_key",
        "serve/test_routes.py::test_the_board_fills",
        "cli/test_serve_command.py::test_others_are_not_let_in_without_a_key",
    ),
    "S062": ("serve/test_bad_requests.py::test_an_id_is_echoed_only_if_it_can_do_no_harm",),
    # and, of many thousands of bodies, the slow test beside it
    "S063": ("serve/test_fuzz.py::test_what_the_document_allows_is_answered_as_it_says",),
    "S064": ("serve/test_routes.py::test_what_these_routes_do_not_take[/tokenize",),
    "S066": (f"{BODY}[S066",),
    "S067": (
        "vlm/test_tool_calls.py::test_any_answer_is_read_and_what_is_no_call_stays",
        "vlm/test_tool_calls.py::test_a_long_answer_is_read_in_time",
        "vlm/test_tool_calls.py::test_a_call_that_cannot_be_read_stays_with_a_note",
    ),
    "S068": (
        "serve/test_chat_completions.py::test_a_stream_joins_to_the_whole",
        "engine/test_stream.py::test_no_piece_holds_part_of_a_character",
        "engine/test_stream.py::test_joined_pieces_are_the_text_up_to_the_first_stop_string",
    ),
    "S069": (f"{LOAD}test_a_clock_that_is_set_ends_nothing",),
}

CLI: dict[str, tuple[str, ...]] = {
    "K002": (f"{AROUND}test_a_reader_that_stops_early_ends_it_quietly",),
    "K003": (f"{AROUND}test_without_input_it_ends",),
    "K004": (f"{AROUND}test_another_encoding_costs_no_letter",),
    "K005": (
        f"{AROUND}test_what_goes_into_a_pipe_is_plain",
        "test_log.py::test_colour_is_for_a_terminal_that_wants_it",
    ),
    "K007": (f"{AROUND}test_a_key_is_no_argument",),
    "K008": (f"{AROUND}test_a_key_file_that_others_may_read_is_told",),
    "K009": (f"{AROUND}test_a_home_that_is_not_there_is_not_needed",),
    "K010": ("test_offline.py::test_nothing_leaves_the_machine",),
    "K012": (f"{Path(__file__).name}::test_an_assert_of_a_test_is_kept_without_asserts",),
    "K013": (f"{AROUND}test_files_of_the_folder_are_not_imported",),
}

CONFIG_FILES: dict[str, tuple[str, ...]] = {
    "F001": (f"{SETTINGS}test_only_toml_is_read[F001", NO_CODE),
    "F002": (
        f"{SETTINGS}test_an_unknown_key_names_the_file_and_the_nearest_name",
        f"{SETTINGS}test_a_bad_value_names_its_place_and_what_fits",
    ),
    "F004": (
        f"{SETTINGS}test_a_bad_value_names_its_place_and_what_fits[max_new_tokens",
        f"{SETTINGS}test_only_toml_is_read[F004",
    ),
    "F005": (
        f"{SETTINGS}test_variables_of_others_are_shown_and_secrets_hidden",
        "cli/test_serve_command.py::test_the_keys_of_the_environment_are_no_setting_and_not_shown",
    ),
    "F006": (
        f"{SETTINGS}test_only_toml_is_read[F006",
        f"{SETTINGS}test_a_file_that_is_too_large_is_not_read",
        "cli/test_prompts_command.py::test_a_file_that_is_too_large_is_not_read",
    ),
    "F007": ("cli/test_prompts_command.py::test_a_field_that_is_no_plain_name_is_refused",),
    # no folder of the server's is ever read for a client
    "F009": (
        f"{BODY}[S039 file",
        f"{URL}[file",
        "test_mcp_server.py::test_paths_are_read_only_where_they_may_be",
    ),
    "F010": ("cli/test_serve_command.py::test_a_wish_for_tls_is_not_answered_with_plain_http",),
    "F011": (
        f"{SETTINGS}test_each_source_beats_the_next",
        f"{SETTINGS}test_sources_mix_key_by_key",
    ),
    "F012": ("serve/test_bad_requests.py::test_not_even_the_most_talkative_log_holds_a_prompt",),
}
BATCH: dict[str, tuple[str, ...]] = {
    "B001": (
        "runs/test_kills.py::test_kills_at_random_moments_lose_and_double_nothing",
        f"{RUN}killed_and_resumed_is_never_killed",
    ),
    "B003": (
        "runs/test_damage.py::test_a_flipped_bit_is_named_by_line_and_byte",
        "runs/test_damage.py::test_repair_keeps_the_bad_lines",
    ),
    "B004": ("runs/test_lock.py::test_of_fifty_races_each_has_one_winner",),
    "B005": ("runs/test_lock.py::test_a_child_that_lives_on_does_not_keep_the_lock",),
    "B006": (
        f"{STORAGE}every_call_fails_in_turn",
        f"{STORAGE}a_limit_on_the_size_of_files_ends_in_a_whole_store",
    ),
    "B008": (f"{STORAGE}after_a_failed_fsync_the_next_process_begins_a_new_file",),
    "B009": (
        f"{STORAGE}a_folder_that_only_can_be_read_is_named",
        f"{STORAGE}every_call_fails_in_turn",
    ),
    "B010": ("runs/test_damage.py::test_a_run_json_that_is_not_ours_ends_with_7",),
    "B011": ("batch/test_job.py::test_other_weights_end_a_run",),
    "B013": ("runs/test_run.py::test_a_clock_that_is_set_back_changes_nothing",),
    "B014": (
        "runs/test_lock.py::test_a_network_file_system_is_told_and_has_a_second_lock",
        "runs/test_lock.py::test_where_flock_keeps_nobody_out_the_second_lock_does",
    ),
    "B015": (
        f"{COURSE}a_bad_item_at_any_place_changes_no_other",
        "batch/test_check.py::test_b015_one_bad_picture_among_many",
    ),
    "B016": (f"{COURSE}a_model_that_only_fails_ends_the_run_and_no_bad_item_does",),
    "B018": (
        "vlm/test_remote.py::test_a_server_says_when_to_ask_again",
        "vlm/test_remote.py::test_a_pause_that_is_none_is_not_believed",
        "vlm/test_remote.py::test_a_pause_that_is_too_long_is_an_error_at_once",
    ),
    "B019": (f"{COURSE}what_may_go_better_is_tried_three_times",),
    "B020": ("batch/test_tables.py::test_b020_an_id_that_comes_twice_names_both_rows",),
    "B021": (
        "batch/test_tables.py::test_b021_without_ids_one_picture_may_come_twice",
        "batch/test_inputs.py::test_b021_one_file_that_is_named_twice_is_two_items",
    ),
    "B023": (
        "batch/exports/test_formats.py::test_no_payload_is_a_formula_in_csv",
        f"{REVIEW}no_payload_is_a_formula_in_a_workbook",
        f"{REVIEW}no_payload_is_a_formula_in_ones_own_workbook",
    ),
    "B024": (f"{REVIEW}a_long_text_is_cut_and_flagged", f"{REVIEW}rows_go_on_in_another_sheet"),
    "B025": ("batch/test_workbook.py::test_b025_",),
    "B026": ("batch/test_workbook.py::test_b026_",),
    "B028": ("batch/test_workbook.py::test_b028_",),
    "B029": ("batch/test_parquet.py::test_b029_",),
    "B030": ("batch/test_archives.py::test_b030_",),
    "B031": ("batch/test_inputs.py::TestB031",),
    "B033": (
        "batch/test_names.py::test_a_name_is_one_plain_file",
        "batch/test_names.py::test_no_two_names_are_the_same",
        "batch/test_names.py::test_a_name_that_leads_elsewhere_is_refused",
    ),
    "B034": (
        f"{RUN}a_file_that_is_there_is_replaced_on_request_alone",
        f"{RUN}the_same_command_goes_on_and_another_is_refused",
    ),
    "B035": ("batch/exports/test_formats.py::test_a_killed_export_is_old_or_new",),
    "B036": ("batch/test_check.py::test_b036_a_file_that_was_replaced_is_noted",),
    "B038": ("batch/test_check.py::test_b038_an_address_of_a_private_network_is_blocked",),
    "B039": (f"{RUN}ctrl_c_keeps_what_is_done",),
    "B040": (f"{RUN}a_run_that_sleeps_fails_nothing",),
    "B041": (WORKER, "runs/test_run.py::test_an_item_that_crashes_processes_is_given_up"),
    "B043": ("runs/test_run.py::test_any_text_comes_back",),
    "B044": ("batch/test_inputs.py::test_b044_", f"{RUN}bad_words[words2"),
    "B045": ("runs/test_merge.py::test_a_shard_that_is_none_ends_with_2", f"{RUN}bad_words[words3"),
    "B046": (f"{RUN}a_count_of_workers_that_is_none_ends_with_2",),
}

CASES = LOADER | API | SERVER | CLI | CONFIG_FILES | BATCH


def rows() -> dict[str, str]:
    """The surface of each row."""
    with (TESTS / "data" / "bad_inputs.tsv").open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["id"]: row["surface"] for row in table}


def pytest_run(*args: str | Path, optimised: bool = False) -> subprocess.CompletedProcess[str]:
    """Of our tests, in a process of its own; `optimised` as all that it starts are, too."""
    flags = ["-O"] if optimised else []
    known = ["-W", "ignore:assertions not in test modules:pytest.PytestConfigWarning"]
    around = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONOPTIMIZE": "1" if optimised else ""}
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        TESTS.parent / "pyproject.toml",
    ]
    return subprocess.run(
        [sys.executable, *flags, *command, *known, "--rootdir", TESTS.parent, *args],
        cwd=TESTS.parent,
        env={**os.environ, **around},
        capture_output=True,
        text=True,
    )


def nodes() -> list[str]:
    """Every test that a case names, as pytest finds them."""
    functions = sorted({str(TESTS / case.partition("[")[0]) for case in all_cases()})
    files = sorted({function.partition("::")[0] for function in functions})
    found = pytest_run("--collect-only", *files)
    listed = [line.removeprefix("tests/") for line in found.stdout.splitlines() if "::" in line]
    named = {case: [node for node in listed if node.startswith(case)] for case in all_cases()}
    assert [case for case, tests in named.items() if not tests] == [], found.stderr
    # a whole test by its own name: ids of odd addresses are not always found again
    return sorted(
        {
            node if "[" in case else node.partition("[")[0]
            for case, tests in named.items()
            for node in tests
        }
    )


def all_cases() -> list[str]:
    return sorted({case for cases in CASES.values() for case in cases})


def test_every_row_of_what_is_built_has_a_case() -> None:
    surfaces = rows()
    built = {row for row, surface in surfaces.items() if surface not in NOT_BUILT}
    assert sorted(built - CASES.keys()) == []
    assert sorted(CASES.keys() - built) == []
    assert Counter(surfaces[row] for row in built) == {
        "loader": len(LOADER),
        "api": len(API),
        "server": len(SERVER),
        "cli": len(CLI),
        "config": len(CONFIG_FILES),
        "batch": len(BATCH),
    }


@pytest.mark.parametrize("case", all_cases())
def test_a_case_is_a_test_that_there_is(case: str) -> None:
    """By its text, which takes no time; the slow test below asks pytest itself."""
    file, _, name = case.partition("::")
    function = name.partition("[")[0]
    text = (TESTS / file).read_text("utf-8")
    assert re.search(rf"^(def|class) {re.escape(function)}\w*[(:]", text, re.MULTILINE)


WRONG = """
import served
def test_here(): assert __debug__ is False and 1 == 2
def test_in_a_helper(): served.until(lambda: False, within_s=0)
def test_right(): assert __debug__ is False
"""


def test_an_assert_of_a_test_is_kept_without_asserts(tmp_path: Path) -> None:
    """Else all that runs so would be green: a wrong expectation must be red, in a helper's module too."""
    (tmp_path / "test_wrong.py").write_text(WRONG)
    done = pytest_run("-p", "conftest", tmp_path, optimised=True)
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_every_case_holds_without_asserts() -> None:
    """K012: in the program, and in the processes that it starts, no check is an assert."""
    found = [str(TESTS / node) for node in nodes()]
    done = pytest_run("-m", "not gpu", *found, optimised=True)
    print(f"{len(found)} tests of {len(CASES)} rows: {done.stdout.splitlines()[-1]}")  # noqa: T201
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
