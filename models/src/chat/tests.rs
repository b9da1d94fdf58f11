//! Templates as models have them, compared with what Python's Jinja makes of them, and templates that mean harm.

use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::json;

use super::*;
use crate::tokenizer::tests::vocabulary;

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    let options = RenderOptions::new(UNIX_EPOCH + Duration::from_secs(1_709_213_696));
    ChatTemplate::new(source, "<s>", "</s>")?.render(messages, &options)
}

fn conversation() -> Vec<Message> {
    vec![Message::new("system", "Be brief. "), Message::new("user", " Hi <b>\n"), Message::new("assistant", "Hello")]
}

#[test]
fn templates_of_models() {
    let phi3 = ChatTemplate::from_vocabulary(&vocabulary("phi-3")).unwrap();
    let text = phi3.render(&conversation()[1..], &RenderOptions::new(UNIX_EPOCH)).unwrap();
    assert_eq!(text, "<s><|user|>\n Hi <b>\n<|end|>\n<|assistant|>\nHello<|end|>\n");

    let qwen = ChatTemplate::from_vocabulary(&vocabulary("qwen2")).unwrap();
    let mut options = RenderOptions::new(UNIX_EPOCH);
    let system = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n";
    let user = format!("{system}<|im_start|>user\nHi<|im_end|>\n");
    let hi = [Message::new("user", "Hi")];
    assert_eq!(qwen.render(&hi, &options).unwrap(), format!("{user}<|im_start|>assistant\n"));
    options.generation_prompt = GenerationPrompt::Omit;
    assert_eq!(qwen.render(&hi, &options).unwrap(), user);

    let missing = ChatTemplate::from_vocabulary(&vocabulary("gpt-2")).unwrap_err();
    assert!(missing.to_string().starts_with("model has no chat template"));
}

#[test]
fn the_last_message_can_go_on() {
    let source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[x]{% endif %}";
    let trimming = source.replace("m.content }}", "m.content | trim }}");
    let goes_on = RenderOptions { generation_prompt: GenerationPrompt::Continue, ..RenderOptions::new(UNIX_EPOCH) };
    let render = |source: &str, last: &str| {
        let messages = [Message::new("user", "No, yes"), Message::new("assistant", last)];
        ChatTemplate::new(source, "", "").unwrap().render(&messages, &goes_on)
    };
    assert_eq!(render(source, "No, ").unwrap(), "[user] No, yes</s>[assistant] No, ");
    assert_eq!(render(&trimming, " No, ").unwrap(), "[user] No, yes</s>[assistant] No,");
    for (source, last) in [(source, " "), ("{{ messages | length }}", "No")] {
        assert!(matches!(render(source, last), Err(TemplateError::NotRepeated)), "{last}");
    }
    let calls = Message { content: Some(Json::Null), ..Message::new("assistant", "") };
    let template = ChatTemplate::new(source, "", "").unwrap();
    assert!(matches!(template.render(&[calls], &goes_on), Err(TemplateError::NotRepeated)));
}

#[test]
fn templates_that_ask_nobody_are_told_the_date() {
    let template = ChatTemplate::new("{{ date_string }}|{{ datetime }}|{{ strftime_now('%d') }}", "", "").unwrap();
    let mut options = RenderOptions::dated(UNIX_EPOCH + Duration::from_secs(1_709_213_696));
    assert_eq!(template.render(&[], &options).unwrap(), "29 Feb 2024|Feb 29 2024|29");
    options.extra.insert("date_string".to_owned(), "today".into());
    assert_eq!(template.render(&[], &options).unwrap(), "today|Feb 29 2024|29");
}

#[test]
fn tools_and_variables_reach_the_template() {
    let template = ChatTemplate::new("{{ tools[0].name }} {{ thinking }} {{ messages[0].calls | tojson }}", "", "");
    let mut message = Message::new("assistant", "");
    message.extra.insert("calls".to_owned(), json!([{"b": 1, "a": null}]));
    let tools = [json!({"name": "clock"})];
    let extra = json!({"thinking": false, "tools": "mine", "messages": 3}).as_object().unwrap().clone();
    let options = RenderOptions { tools: &tools, extra, ..RenderOptions::new(UNIX_EPOCH) };
    assert_eq!(template.unwrap().render(&[message], &options).unwrap(), "clock False [{\"b\": 1, \"a\": null}]");
}

#[test]
fn null_is_not_absence() {
    let source = "{{ tools is none }} {% for m in messages %}{{ m.content is defined }} {{ m.content }} {% endfor %}";
    let messages: Vec<Message> = serde_json::from_value(json!([
        {"role": "assistant"},
        {"role": "assistant", "content": null},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ]))
    .unwrap();
    assert_eq!(render(source, &messages).unwrap(), "True False  True None True [{'type': 'text', 'text': 'a'}] ");
    assert_eq!(json!(messages[0]), json!({"role": "assistant"}));
}

#[test]
fn faults_name_their_owner() {
    let raised = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert!(matches!(&raised, TemplateError::Raised { message } if message == "roles must alternate"), "{raised:?}");
    let in_macro = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(in_macro, &[]), Err(TemplateError::Raised { .. })));
    assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(TemplateError::Syntax { .. })));
    assert!(matches!(ChatTemplate::new("{% frob %}", "", ""), Err(TemplateError::Syntax { .. })));
    assert!(matches!(ChatTemplate::new(&" ".repeat(SOURCE_BYTES_MAX + 1), "", ""), Err(TemplateError::TooLong { .. })));
    let failed = render("{{ ''.__class__.__mro__[1].__subclasses__() }}", &[]).unwrap_err();
    assert!(matches!(&failed, TemplateError::Failed { message } if message.contains("undefined")), "{failed:?}");
    assert!(matches!(
        render("{% for m in [1] %}{{ loop.cycle() }}{% endfor %}", &[]),
        Err(TemplateError::Failed { .. })
    ));
    for block in ["with", "set a", "filter upper", "generation", "macro f()"] {
        let end = block.split(' ').next().unwrap();
        let jumps = format!("{{% for a in [1] %}}{{% {block} %}}{{% break %}}{{% end{end} %}}{{% endfor %}}");
        assert!(ChatTemplate::new(&jumps, "", "").is_err(), "{jumps}");
    }
    for tag in ["include '/etc/passwd'", "import '/etc/passwd' as x", "extends '/etc/passwd'"] {
        assert!(matches!(ChatTemplate::new(&format!("{{% {tag} %}}"), "", ""), Err(TemplateError::Tag { .. })));
    }
}

#[test]
fn long_conversations_fit() {
    let template = ChatTemplate::from_vocabulary(&vocabulary("qwen2")).unwrap();
    for (messages, len) in [(5000, 100), (10, 400_000)] {
        let messages = vec![Message::new("user", "x".repeat(len)); messages];
        assert!(template.render(&messages, &RenderOptions::new(UNIX_EPOCH)).is_ok());
    }
}

/// A hundred million rounds of `step` on `ns.v`, which begins as `start`.
fn rounds(start: &str, step: &str) -> String {
    let head =
        format!("{{% set ns = namespace(v={start}) %}}{{% for a in range(10000) %}}{{% for b in range(10000) %}}");
    format!("{head}{{% set ns.v = {step} %}}{{% endfor %}}{{% endfor %}}")
}

#[test]
fn hostile_templates_end_soon() {
    let doubled = "{% set ns = namespace(v=[1]) %}{% for i in range(60) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}";
    let million = "{% set s = 'x' * 1000000 %}";
    let sources = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(10**9) %}{% endfor %}".to_owned(),
        "{{ 'x' * 10**9 }}".to_owned(),
        "{{ ([0] * 10**9) | length }}".to_owned(),
        "{% set a = 'x' * 100000000 %}".repeat(1000),
        "{% set a = (0,) * 100000000 %}".repeat(1000),
        rounds("'xx'", "ns.v ~ ns.v"),
        rounds("'xx'", "ns.v + ns.v"),
        rounds("[1]", "ns.v + ns.v"),
        rounds("[]", "[ns.v]"),
        rounds("[1]", "[ns.v, ns.v]"),
        rounds("[1]", "ns.v[0:]"),
        rounds("[]", "ns.v + ['x' * 10000]"),
        rounds("'xx'", "ns.v | replace('x', ns.v)"),
        format!("{doubled}{{{{ ns.v }}}}"),
        format!("{doubled}{{{{ ns.v | tojson }}}}"),
        format!("{doubled}{{{{ {{}}[ns.v] }}}}"),
        format!("{doubled}{{% if ns.v == ns.v %}}{{% endif %}}"),
        format!("{doubled}{{{{ raise_exception(ns.v) }}}}"),
        "{% set ns = namespace() %}{% set ns.v = [ns] %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% for a in [ns] %}{% set ns.v = loop %}{% endfor %}{{ ns }}".to_owned(),
        format!("{million}{{{{ range(99999) | join(s) }}}}{{{{ s.join(range(99999)) }}}}"),
        format!("{million}{{% for a in range(9999) %}}{{{{ s.strip(s) }}}}{{% endfor %}}"),
        format!("{million}{{% for a in range(9999) %}}{{% if 'y' in s %}}{{% endif %}}{{% endfor %}}"),
        format!("{million}{{{{ range(99999) | list | tojson(separators=(s, s)) }}}}"),
        "{{ 'a\nb' | indent(10**10) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ '{:1000000000d}'.format(1) }}".to_owned(),
        "{{ '%1000000000d' % 1 }}{{ '%*d' % (1000000000, 1) }}".to_owned(),
        "{{ 'a'.center(10**9) }}".to_owned(),
        "{{ 'a\nb' | indent('x' * 10**9) }}".to_owned(),
        "{{ [[]] | tojson(indent='x' * 1000) }}".to_owned(),
        format!("{million}{{% for a in range(9999) %}}{{{{ s.split('x') }}}}{{% endfor %}}"),
        format!("{million}{{% for a in range(9999) %}}{{{{ s.splitlines() }}}}{{{{ s.rfind('y', 1) }}}}{{% endfor %}}"),
        format!("{million}{{% for a in range(9999) %}}{{{{ s.title() }}}}{{{{ s[::-1] }}}}{{% endfor %}}"),
        format!("{million}{{{{ s.replace('', s) }}}}"),
        format!("{million}{{{{ s | replace('x', s) }}}}"),
        format!("{million}{{{{ (s | list | join(s)) | length }}}}"),
        format!("{million}{{% for a in range(9999) %}}{{{{ s | e | trim('x') | length }}}}{{% endfor %}}"),
        format!("{million}{{{{ range(99999) | map(attribute=s) | list }}}}{{{{ range(99999) | join(s, s) }}}}"),
        rounds("[]", "[ns.v]") + "{{ ns.v }}",
        rounds("[1]", "ns.v[::-1] + ns.v"),
        rounds("(1,)", "ns.v * 2"),
        rounds("'x'", "'%s%s' % (ns.v, ns.v)"),
        "{% set ns = namespace(v=[]) %}{% for i in range(9999) %}{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v }}".to_owned(),
        "{% set ns = namespace(v=[]) %}{% for i in range(9999) %}{% set ns.v = {1: ns.v} %}{% endfor %}{{ ns.v | tojson(indent=9) }}".to_owned(),
        format!("{{% for a in range(99999) %}}{}{{% endfor %}}", "x".repeat(1000)),
        format!("{{% set a %}}{{% for a in range(99999) %}}{}{{% endfor %}}{{% endset %}}", "x".repeat(100_000)),
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}".to_owned(),
    ];
    for source in sources {
        let start = Instant::now();
        let error = render(&source, &conversation());
        let shown = &source[..source.len().min(120)];
        assert!(matches!(error, Err(TemplateError::Limit { .. } | TemplateError::Failed { .. })), "{shown}: {error:?}");
        assert!(start.elapsed().as_secs() < 10, "{shown} took {:?}", start.elapsed());
    }
}

#[test]
fn deep_sources_do_not_overflow_the_stack() {
    for (head, unit, tail) in [
        ("{{ a", "~a", " }}"),
        ("{{ a", " or a", " }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "a }}"),
        ("{{ a", "|e", " }}"),
        ("{{ a", ".a", " }}"),
        ("{{ ", "(", "a }}"),
        ("{% if a %}", "{%elif a%}", "{% endif %}"),
        ("{{ ", "1 if a else ", "1 }}"),
    ] {
        let units = (SOURCE_BYTES_MAX - head.len() - tail.len()) / unit.len();
        let start = Instant::now();
        // Whether it is an error does not matter, coming back does.
        let _ = render(&format!("{head}{}{tail}", unit.repeat(units)), &[]);
        assert!(start.elapsed().as_secs() < 10, "{unit} took {:?}", start.elapsed());
    }
}
