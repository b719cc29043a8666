//! Logs of two daemons, side by side: what counts as the same, and what must not.

use super::*;

fn accounts() -> Accounts {
    let mut accounts = Accounts::default();
    accounts.add(
        1424,
        ["10.88.0.15", "2001:db8::15/128", "ivanov"].into_iter(),
    );
    accounts.add(1425, ["10.88.0.16"].into_iter());
    accounts
}

fn compared(theirs: &str, ours: &str) -> Vec<(String, &'static str)> {
    let accounts = accounts();
    let read = |log: &str| Effects::read(log, &accounts, "", "");
    let (theirs, ours) = (read(theirs), read(ours));
    Effects::compare(&theirs, &ours)
        .map(|((who, what), verdict, ..)| (format!("{who} {what}"), verdict.as_str()))
        .collect()
}

const PREFIX: &str =
    "2026-07-01 10:00:00 bras nas_event_daemon[812]: event=7 user=1424 cmd=c try=1";

#[test]
fn other_names_and_spellings_have_the_same_effect() {
    let theirs = "send_mikrotik_cmd -s 10.90.185.2 admin servicemode /queue simple add name=q15 target=10.88.0.15/32 max-limit=20M/20M comment=crb_10.88.0.15
        send_mikrotik_cmd -s 10.90.185.2 admin servicemode /ip firewall address-list add list=crb_negbal address=10.88.0.15 comment=crb_10.88.0.15
        send_mikrotik_cmd -s 10.90.185.2 admin servicemode /ip firewall address-list remove list=crb_negbal comment=crb_10.88.0.15
        ERROR: UnknownParameter message: '', command: 'send_mikrotik_cmd /queue simple remove comment=crb_10.88.0.15' exit code: 249";
    let ours = format!(
        "{PREFIX} > send_mikrotik_cmd --nas 1 /queue/simple/add name=crb_1424 target=10.88.0.15/32 max-limit=20000000/20000000 comment=crb_1424
{PREFIX} > send_mikrotik_cmd --nas 1 /ip/firewall/address-list/print '?list=crb_negbal' '?comment=crb_1424' .proplist=.id,list
{PREFIX} < rows of ours that match would be removed by their .id"
    );
    assert_eq!(
        compared(theirs, &ours),
        [
            (
                "user 1424 /ip/firewall/address-list crb_negbal".to_owned(),
                "same"
            ),
            ("user 1424 /queue/simple".to_owned(), "same")
        ]
    );
}

#[test]
fn what_differs_is_missing_or_too_much_is_told() {
    let theirs =
        "send_mikrotik_cmd -s h l p /queue simple add target=10.88.0.15/32 max-limit=20M/20M
send_mikrotik_cmd -s h l p /ip firewall address-list add list=vip address=10.88.0.15
send_mikrotik_cmd -s h l p /queue simple remove comment=crb_10.88.0.16";
    let ours = format!(
        "{PREFIX} > send_mikrotik_cmd --nas 1 /queue/simple/add name=crb_1424 target=10.88.0.15/32 max-limit=20000000/10000000
{PREFIX} > send_mikrotik_cmd --nas 1 /queue/simple/add name=crb_1425 target=10.88.0.16/32
{PREFIX} > send_mikrotik_cmd --nas 1 /ppp/active/remove name=ivanov
{PREFIX} > send_mikrotik_cmd --nas 1 /ip/firewall/address-list/print '?address=10.88.0.16'"
    );
    assert_eq!(
        compared(theirs, &ours),
        [
            (
                "user 1424 /ip/firewall/address-list vip".to_owned(),
                "missing"
            ),
            ("user 1424 /ppp/active".to_owned(), "extra"),
            ("user 1424 /queue/simple".to_owned(), "different"),
            ("user 1425 /queue/simple".to_owned(), "different"),
        ]
    );
}

#[test]
fn an_account_that_is_removed_everywhere_is_removed_from_each_list() {
    let theirs = "send_mikrotik_cmd -s h l p /ip firewall address-list remove list=crb_negbal comment=crb_10.88.0.15
send_mikrotik_cmd -s h l p /ip firewall address-list remove list=crb_auth comment=crb_10.88.0.15";
    let all = format!(
        "{PREFIX} > send_mikrotik_cmd --nas 1 /ip/firewall/address-list/add list=crb_auth address=10.88.0.15
{PREFIX} > send_mikrotik_cmd --nas 1 /ip/firewall/address-list/print '?comment=crb_1424'
{PREFIX} < rows of ours that match would be removed by their .id"
    );
    let told = compared(theirs, &all);
    assert!(
        told.iter()
            .filter(|(_, verdict)| *verdict == "same")
            .count()
            == 2,
        "{told:?}"
    );
}

#[test]
fn packets_and_lines_are_the_same_whoever_sends_them() {
    let theirs = "echo \"User-Name=\\\"ivanov\\\", Filter-Id=\\\"session 10.88.0.15 rate set in 1000 20000 0\\\"\" | radclient -x 10.90.185.4:3799 coa secret
echo \"nft add element inet crb negbal4 { 10.88.0.16 }\" | ssh_send --port 33 -u root -p servicemode 10.90.185.3";
    let ours = format!(
        "{PREFIX} > send_radius_cmd --nas 3 coa Framed-IP-Address=10.88.0.15 'Filter-Id=session 10.88.0.15 rate set in 1000 20000 0'
{PREFIX} > send_ssh_cmd --nas 2 'nft -f -' <<< 'add element inet crb negbal4 {{ 10.88.0.16 }}'"
    );
    let told = compared(theirs, &ours);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter().all(|(_, verdict)| *verdict == "same"),
        "{told:?}"
    );
    let slower = ours.replace("20000 0", "10000 0");
    let told = compared(theirs, &slower);
    assert!(
        told.iter().any(|(_, verdict)| *verdict == "different"),
        "{told:?}"
    );
}

#[test]
fn only_the_asked_time_counts() {
    let log =
        "2026-07-01 10:00:00 h d[1]: send_mikrotik_cmd -s h l p /queue simple add target=10.88.0.15
2026-07-02 10:00:00 h d[1]: send_mikrotik_cmd -s h l p /queue simple remove comment=crb_10.88.0.15
send_mikrotik_cmd -s h l p /queue simple add target=10.88.0.16";
    let read = |from: &str, to: &str| {
        let effects = Effects::read(log, &accounts(), from, to);
        (
            effects.commands,
            effects
                .stands
                .values()
                .filter(|s| **s == Stands::Gone)
                .count(),
        )
    };
    assert_eq!(read("", ""), (3, 1));
    assert_eq!(read("", "2026-07-01 23:59:59"), (2, 0));
    assert_eq!(read("2026-07-02 00:00:00", ""), (2, 1));
}
