//! Keys, signatures and hashes against what others published.

use linkspan_smb2::negotiate::{Cipher, NegotiateRequest, NegotiateResponse, Signing, dialect};
use linkspan_smb2::security::{Keys, Preauth, Sealer, Signer, TRANSFORM_LEN, kdf};
use linkspan_smb2::session::{SetupRequest, SetupResponse};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, Error, Header, ntlm, spnego};
use zerocopy::IntoBytes as _;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn key(text: &str) -> [u8; 16] {
    hex(text).try_into().unwrap()
}

/// The messages of a log-on with SMB 3.1.1, from "SMB 2 and SMB 3 security in Windows 10:
/// the anatomy of signing and cryptographic keys" (Microsoft, 2017), with the hash after each.
const LOG_ON: [(&str, &str); 5] = [
    (
        "FE534D4240000100000000000000800000000000000000000100000000000000FFFE000000000000
         00000000000000000000000000000000000000000000000024000500000000003F000000ECD86F32
         6276024F9F7752B89BB33F3A70000000020000000202100200030203110300000100260000000000
         010020000100FA49E6578F1F3A9F4CD3E9CC14A67AA884B3D05844E0E5A118225C15887F32FF0000
         0200060000000000020002000100",
        "DD94EFC5321BB618A2E208BA8920D2F422992526947A409B5037DE1E0FE8C7362B8C47122594CDE0
         CE26AA9DFC8BCDBDE0621957672623351A7540F1E54A0426",
    ),
    (
        "FE534D4240000100000000000000010001000000000000000100000000000000FFFE000000000000
         000000000000000000000000000000000000000000000000410001001103020039CBCAF329714942
         BDCE5D60F09AB3FB2F000000000080000000800000008000D8DAE5ADCBAED00109094AB095AED001
         80004001C00100006082013C06062B0601050502A08201303082012CA01A3018060A2B0601040182
         3702021E060A2B06010401823702020AA282010C048201084E45474F455854530100000000000000
         60000000700000007C7CC0FD06D6362D02DDE1CF343BFE292900F49750B4AA97934D9C4296B26E51
         FD370471B235E15A50DAE15BD5489C87000000000000000060000000010000000000000000000000
         5C33530DEAF90D4DB2EC4AE3786EC3084E45474F4558545303000000010000004000000098000000
         7C7CC0FD06D6362D02DDE1CF343BFE295C33530DEAF90D4DB2EC4AE3786EC3084000000058000000
         3056A05430523027802530233121301F06035504031318546F6B656E205369676E696E6720507562
         6C6963204B65793027802530233121301F06035504031318546F6B656E205369676E696E67205075
         626C6963204B6579010026000000000001002000010060A3C3B95C3C7CCD51EC536648D9B3AC74C4
         83CA5B65385A251117BEB30712E50000020004000000000001000200",
        "324BFA92A4F3A190E466EBEA08D9C110DC88BFED758D9846ECC6F541CC1D02AE3C94A79F36011E99
         7E13F841B91B50957AD07B19C8E2539C0B23FDAE09D2C513",
    ),
    (
        "FE534D4240000100000000000100800000000000000000000200000000000000FFFE000000000000
         00000000000000000000000000000000000000000000000019000001010000000000000058004A00
         0000000000000000604806062B0601050502A03E303CA00E300C060A2B06010401823702020AA22A
         04284E544C4D5353500001000000978208E200000000000000000000000000000000060380250000
         000F",
        "AC0B0F2B9986257700365E416D142A6EDC96DF03594A19E52A15F6BD0D041CD5D432F8ED42C55E33
         197A50C9EC00F1462B50C592211B1471A04B56088FDFD5F9",
    ),
    (
        "FE534D4240000100160000C00100010001000000000000000200000000000000FFFE000000000000
         190000000010000000000000000000000000000000000000090000004800B300A181B03081ADA003
         0A0101A10C060A2B06010401823702020AA281970481944E544C4D53535000020000000C000C0038
         00000015828AE20D1D8BA31179D008000000000000000050005000440000000A0092270000000F53
         005500540033003100310002000C0053005500540033003100310001000C00530055005400330031
         00310004000C0053005500540033003100310003000C0053005500540033003100310007000800A1
         A1F5ADCBAED00100000000",
        "2729E3440DFDDD839E37193F6E8F20C20CEFB3469E453A70CD980EEC06B8835740A7376008563336
         4C8989895ECE81BF102DEEB14D4B7D48AFA76901A7A38387",
    ),
    (
        "FE534D4240000100000000000100800000000000000000000300000000000000FFFE000000000000
         1900000000100000000000000000000000000000000000001900000101000000000000005800CF01
         0000000000000000A18201CB308201C7A0030A0101A28201AA048201A64E544C4D53535000030000
         001800180090000000EE00EE00A80000000C000C00580000001A001A0064000000120012007E0000
         001000100096010000158288E2060380250000000FECAC77A5F385A8BF9C38C706EEEDDCD3530055
         005400330031003100610064006D0069006E006900730074007200610074006F0072004400520049
         0056004500520033003100310000000000000000000000000000000000000000000000000063078E
         B639FE03E20A231C3AE3BF23080101000000000000A1A1F5ADCBAED001BC4AD05F223CC90F000000
         0002000C0053005500540033003100310001000C0053005500540033003100310004000C00530055
         00540033003100310003000C0053005500540033003100310007000800A1A1F5ADCBAED001060004
         00020000000800300030000000000000000000000000300000B61FEFCAA857EA57BF1EDCEBF8974B
         8E0EBA5A6DFD9D07A31D11B548F8C9D0CC0A00100000000000000000000000000000000000090016
         0063006900660073002F005300550054003300310031000000000000000000000000003B9BDFF38F
         5EE8F9663F11A0F4C03A78A31204100100000063775A9A5FD97F0600000000",
        "0DD13628CC3ED218EF9DF9772D436D0887AB9814BFAE63A80AA845F36909DB7928622DDDAD522D97
         51640A459762C5A9D6BB084CBB3CE6BDADEF5D5BCE3C6C01",
    ),
];

/// The last answer of it, which is signed.
const SIGNED: &str =
    "FE534D4240000100000000000100800009000000000000000300000000000000FFFE000000000000
     1900000000100000EBE146DA120BA25FC3376A49DFE31BC10900000048001D00A11B3019A0030A01
     00A3120410010000003B453CDC3524164200000000";

fn preauth() -> Preauth {
    let mut hash = Preauth::default();
    for (message, _) in LOG_ON {
        hash.update(&hex(message));
    }
    hash
}

#[test]
fn published_hashes_of_a_log_on() {
    let mut hash = Preauth::default();
    for (message, after) in LOG_ON {
        hash.update(&hex(message));
        assert_eq!(hash.value()[..], hex(after));
    }
}

#[test]
fn published_keys_of_3_0() {
    let session = key("7CD451825D0450D235424E44BA6E78CC");
    let keys = Keys::derive(dialect::SMB_3_0, session, &Preauth::default(), None);
    assert_eq!(keys.signing, key("0B7E9C5CAC36C0F6EA9AB275298CEDCE"));
    assert_eq!(
        keys.encryption[..16],
        key("FAD27796665B313EBB578F388632B4F7")
    );
    assert_eq!(
        keys.decryption[..16],
        key("B0F0427F7CEB416D1D9DCC0CD4F99447")
    );
    let application = kdf(&session, b"SMB2APP\0", b"SmbRpc\0", 128);
    assert_eq!(application[..16], key("BB23A4575AA26C721AF525AF15A87B4F"));
    let second = key("4E01A2B313BCF660CC250BEF021AEDE6");
    let keys = Keys::derive(dialect::SMB_3_0, second, &Preauth::default(), None);
    assert_eq!(keys.signing, key("BA1A17DBBFEC349BCA105563D598952F"));
}

#[test]
fn published_keys_and_signature_of_3_1_1() {
    let session = key("270E1BA896585EEB7AF3472D3B4C75A7");
    let keys = Keys::derive(
        dialect::SMB_3_1_1,
        session,
        &preauth(),
        Some(Cipher::Aes128Gcm),
    );
    assert_eq!(keys.signing, key("73FE7A9A77BEF0BDE49C650D8CCB5F76"));
    assert_eq!(
        keys.encryption[..16],
        key("629BCBC54422A0F572B97F45989B6073")
    );
    assert_eq!(
        keys.decryption[..16],
        key("E2AF0DCEFAC68DA71A0DFBD0D1350D74")
    );
    let signer = Signer::new(Signing::AesCmac, keys.signing);
    let mut message = hex(SIGNED);
    signer.verify(&mut message).unwrap();
    assert_eq!(message, hex(SIGNED));
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        assert!(signer.verify(&mut changed).is_err(), "{at}");
    }
}

/// The same messages are read, and written again as they were.
#[test]
fn published_messages_are_read_and_written() {
    let bytes = hex(LOG_ON[0].0);
    let request = NegotiateRequest::parse(&bytes).unwrap();
    assert_eq!(request.dialects, [0x202, 0x210, 0x300, 0x302, 0x311]);
    assert_eq!(request.contexts.ciphers, [2, 1]);
    let again = request.body();
    // The last context is filled up here.
    assert!(again.starts_with(&bytes[Header::LEN..]));
    let bytes = hex(LOG_ON[1].0);
    let response = NegotiateResponse::parse(&bytes).unwrap();
    assert_eq!(
        (response.fixed.dialect.get(), &response.contexts.ciphers[..]),
        (0x311, &[2][..])
    );
    assert!(spnego::names_ntlm(response.token).unwrap());
    assert!(response.body().starts_with(&bytes[Header::LEN..]));
    let bytes = hex(LOG_ON[2].0);
    let setup = SetupRequest::read(&bytes).unwrap();
    let token = setup.token(&bytes).unwrap();
    assert_eq!(setup.body(token).unwrap(), bytes[Header::LEN..]);
    assert_eq!(spnego::init(&token[token.len() - 40..]), token);
    let bytes = hex(LOG_ON[3].0);
    let token = SetupResponse::read(&bytes).unwrap().token(&bytes).unwrap();
    let challenge = spnego::token(token).unwrap();
    assert!(challenge.starts_with(ntlm::SIGNATURE));
}

fn echo(id: u64) -> Vec<u8> {
    let mut header = Header::request(Command::Echo);
    header.message_id = id.into();
    [header.as_bytes(), &[4, 0, 0, 0]].concat()
}

#[test]
fn what_was_signed_is_what_is_verified() {
    for signing in Signing::ALL {
        let signer = Signer::new(signing, [7; 16]);
        let mut message = echo(5);
        signer.sign(&mut message).unwrap();
        signer.verify(&mut message).unwrap();
        let another = Signer::new(signing, [8; 16]);
        assert_eq!(
            another.verify(&mut message),
            Err(Error::Signature { message: 5 })
        );
        *message.last_mut().unwrap() ^= 1;
        assert_eq!(
            signer.verify(&mut message),
            Err(Error::Signature { message: 5 })
        );
    }
}

#[test]
fn what_was_sealed_is_what_is_opened_and_no_nonce_comes_twice() {
    for cipher in Cipher::ALL {
        let (ours, theirs) = ([1; 32], [2; 32]);
        let mut client = Sealer::new(9, cipher, &ours, &theirs);
        let server = Sealer::new(9, cipher, &theirs, &ours);
        let stranger = Sealer::new(8, cipher, &theirs, &ours);
        let seal = |client: &mut Sealer| {
            let mut message = [vec![0; TRANSFORM_LEN], echo(1)].concat();
            client.seal(&mut message).unwrap();
            message
        };
        let (mut message, second) = (seal(&mut client), seal(&mut client));
        assert!(message[20..36] != second[20..36], "the nonces are the same");
        assert!(message[TRANSFORM_LEN..] != echo(1));
        let sealed = message.clone();
        server.open(&mut message).unwrap();
        assert_eq!(message[TRANSFORM_LEN..], echo(1));
        assert!(stranger.open(&mut sealed.clone()).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            // Of a nonce of CCM the last bytes are nothing but authenticated.
            assert!(server.open(&mut changed).is_err(), "{cipher:?} {at}");
            assert!(
                server.open(&mut sealed[..at].to_vec()).is_err(),
                "{cipher:?} {at}"
            );
        }
    }
}
